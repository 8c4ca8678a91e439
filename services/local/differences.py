"""What a shard's users and counts would be otherwise than they are: one connection sees the one, one the other."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.data.db import Connection

_PAGE = 2000
_NAMED = 5

_NEXT = (
    "SELECT user_id, hot, cold FROM segmenter.user_state WHERE shard = $1 AND user_id > $2 ORDER BY user_id LIMIT $3"
)
_BETWEEN = """
SELECT user_id, hot, cold FROM segmenter.user_state
WHERE shard = $1 AND user_id > $2 AND ($3::text IS NULL OR user_id <= $3)
"""
_COUNTS = """
SELECT kind, name, NULL::int AS day, users FROM segmenter.tally WHERE shard = $1 AND users <> 0
UNION ALL SELECT kind, name, day, users FROM segmenter.tally_day WHERE shard = $1 AND users <> 0
"""


@dataclass
class Differences:
    """How many users and counts there are, and those that differ; some of the users by name."""

    users: int = 0
    otherwise: int = 0
    names: list[str] = field(default_factory=list)
    counts: int = 0

    def __bool__(self) -> bool:
        return bool(self.otherwise or self.counts)

    def __str__(self) -> str:
        if not self:
            return f"{self.users:,} users and all counts are as they are kept"
        named = f" ({', '.join(self.names)}{', …' if self.otherwise > len(self.names) else ''})" if self.names else ""
        return f"{self.otherwise:,} users{named} and {self.counts:,} counts are kept otherwise"


async def compare(kept: Connection, made: Connection, shard: int) -> Differences:
    """A shard as `kept` sees it beside as `made` does."""
    found, after = Differences(), ""
    while True:
        rows = await kept.fetch(_NEXT, shard, after, _PAGE)
        upto = rows[-1]["user_id"] if len(rows) == _PAGE else None
        ours = {row["user_id"]: (row["hot"], row["cold"]) for row in rows}
        theirs = {r["user_id"]: (r["hot"], r["cold"]) for r in await made.fetch(_BETWEEN, shard, after, upto)}
        wrong = sorted(u for u in ours.keys() | theirs.keys() if ours.get(u) != theirs.get(u))
        found.users += len(theirs)
        found.otherwise += len(wrong)
        found.names += wrong[: _NAMED - len(found.names)]
        if upto is None:
            break
        after = upto
    counts = [{tuple(row) for row in await one.fetch(_COUNTS, shard)} for one in (kept, made)]
    found.counts = len(counts[0] ^ counts[1])
    return found
