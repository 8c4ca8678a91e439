"""Which events were refused: one by one, and counted."""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec

from services.ingest.domain.masking import nameless
from shared.data.db import Connection
from shared.process.clock import iso

_NEWEST = """
SELECT d.*, r.replay_id FROM audience.dead_letter d
LEFT JOIN control.replayed r ON r.log_id = d.log_id AND r.shard = d.shard AND r.src = d.src AND r.sent
WHERE starts_with(d.reason, $1) AND ($2 = '' OR d.user_id = $2) AND ($3 = '' OR d.source = $3)
    AND d.received_at >= $4 AND d.received_at < $5 AND (d.recorded_at, d.shard, d.seq) < ($6, $7, $8)
ORDER BY d.recorded_at DESC, d.shard DESC, d.seq DESC LIMIT $9
"""
_COUNTS = """
SELECT split_part(d.reason, ':', 1) AS reason, d.source, d.received_at / 86400000 AS day,
    count(*) AS letters, count(*) FILTER (WHERE d.replay) AS replays
FROM audience.dead_letter d
WHERE starts_with(d.reason, $1) AND ($2 = '' OR d.user_id = $2) AND ($3 = '' OR d.source = $3)
    AND d.received_at >= $4 AND d.received_at < $5
GROUP BY 1, 2, 3 ORDER BY 3 DESC, 4 DESC, 1, 2
"""
_DAY_MS = 86_400_000
FAR_MS = 8_640_000_000_000_000
"""Behind every instant there is."""


class Matching(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead letters are meant: reasons that begin so, this user's, this source's, received since and until."""

    reason: str = ""
    user: str = ""
    source: str = ""
    since: int = 0
    until: int = FAR_MS

    def arguments(self) -> tuple[str, str, str, int, int]:
        """The first five parameters of every statement here."""
        return self.reason, self.user, self.source, self.since, self.until


async def newest(
    connection: Connection, matching: Matching, limit: int, cursor: str = ""
) -> tuple[list[dict[str, Any]], str | None]:
    """Dead letters, newest first, and where to go on; ValueError for a cursor that is none."""
    behind = tuple(int(part) for part in cursor.split("-")) if cursor else (FAR_MS, 0, 0)
    if len(behind) != 3 or not all(0 <= part < 2**63 for part in behind) or behind[1] >= 2**31:
        raise ValueError(f"{cursor!r} is no cursor")
    rows = await connection.fetch(_NEWEST, *matching.arguments(), *behind, limit)
    following = None
    if len(rows) == limit:
        following = "-".join(str(rows[-1][name]) for name in ("recorded_at", "shard", "seq"))
    return [_letter(row) for row in rows], following


def _letter(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "recorded_at": iso(row["recorded_at"]),
        "received_at": iso(row["received_at"]),
        "user_id": nameless(row["user_id"]),
        "reason": row["reason"],
        "source": nameless(row["source"]),
        "raw": {"partition": row["shard"], "offset": row["src"]},
        "replay": row["replay"],
        "replayed_by": row["replay_id"],
        "shard": row["shard"],
        "seq": row["seq"],
    }


async def counts(connection: Connection, matching: Matching) -> dict[str, Any]:
    """How many, by reason, source and day they were received on (UTC)."""
    rows = await connection.fetch(_COUNTS, *matching.arguments())
    items = [
        {
            "day": iso(row["day"] * _DAY_MS)[:10],
            "source": nameless(row["source"]),
            "reason": row["reason"],
            "letters": row["letters"],
            "replays": row["replays"],
        }
        for row in rows
    ]
    totals: dict[str, dict[str, int]] = {"reason": {}, "source": {}, "day": {}}
    for item in items:
        for by, count in totals.items():
            count[item[by]] = count.get(item[by], 0) + item["letters"]
    return {"letters": sum(item["letters"] for item in items), "by": totals, "items": items}
