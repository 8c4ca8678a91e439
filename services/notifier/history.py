"""What was sent to a user lately, by what is committed.

Only the owner of a shard plans and sends its messages, so what is read here before planning can meanwhile have changed
in one way only: a push that was pending was attempted, later than it was counted. No log of its own is kept beside the
messages: it could say something else than they do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from services.notifier.domain.frequency_cap import PENDING, Past
from shared.data.db import Pool

# one look-up by key per user: a join would walk every month's messages
_PAST = """
SELECT n.shard, n.user_id, p.message_id, p.category, p.content_key, p.at, p.opened_at
FROM unnest($1::int[], $2::text[]) AS n(shard, user_id) CROSS JOIN LATERAL (
    SELECT m.message_id, m.category, m.content_key, m.opened_at,
        CASE WHEN m.state IN ('intent', 'attempted') THEN NULL ELSE m.attempted_at END AS at
    FROM notifier.message m
    WHERE m.shard = n.shard AND m.user_id = n.user_id AND m.counts
        AND (m.state IN ('intent', 'attempted') OR (m.state <> 'suppressed' AND m.attempted_at >= $3)) OFFSET 0
) p
"""

Key = tuple[int, str]


async def load(pool: Pool, keys: Iterable[Key], since_ms: int) -> dict[Key, list[Past]]:
    """Pushes to these (shard, user) that are on their way, or were attempted since then."""
    wanted = sorted(keys)
    found: defaultdict[Key, list[Past]] = defaultdict(list)
    if wanted:
        for row in await pool.fetch(_PAST, [k[0] for k in wanted], [k[1] for k in wanted], since_ms):
            at = PENDING if row["at"] is None else row["at"]
            found[row["shard"], row["user_id"]].append(
                Past(row["message_id"], at, row["category"], row["content_key"], row["opened_at"] is not None)
            )
    return dict(found)
