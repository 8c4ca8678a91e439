"""How a message that waits for the end of its user's quiet hours is judged again, once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from services.notifier.domain.campaign import Occurrence
from services.notifier.domain.gates import Reason
from services.notifier.messages import Message
from shared.data.db import Connection, Pool
from shared.process.clock import monotonic

_MOST = 1000
_POLL_SECONDS = 0.5

# whoever came to a run's audience by a city must still be in it by one of the run's
_DUE = """
SELECT m.month, m.message_id, m.shard, m.user_id, m.campaign, m.campaign_version, m.occurrence, m.planned_at,
    m.cause_gen, m.cause_seq, m.cause_src, m.run_id, m.on_unknown, m.category, m.release_at, m.held, m.explain,
    m.run_id = '' OR EXISTS (
        SELECT FROM notifier.run r JOIN audience.cohort_member c
            ON c.shard = m.shard AND c.city_id = ANY(r.city_ids) AND c.relation = ANY(r.relations)
        WHERE r.run_id = m.run_id AND c.user_id = m.user_id
    ) AS concerned
FROM notifier.message m WHERE m.shard = ANY($1::int[]) AND m.state = 'held' AND m.release_at <= $2
ORDER BY m.release_at, m.planned_at, m.message_id LIMIT $3
"""
_COLUMNS = {
    "state": "text", "variant": "text", "reason": "text", "device_id": "text", "token": "text", "title": "text",
    "body": "text", "collapse_id": "text", "expires_at": "bigint", "on_unknown": "text", "planned_at": "bigint",
    "category": "text", "counts": "boolean", "content_key": "text", "zone": "text", "release_at": "bigint",
    "held": "text", "explain": "text",
}  # fmt: skip
_RELEASE = (  # column names are the struct's own
    f"UPDATE notifier.message m SET {', '.join(f'{name} = n.{name}' for name in _COLUMNS)} FROM unnest("  # noqa: S608
    + ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(("text", "text", *_COLUMNS.values()), 2))
    + f") AS n(month, message_id, {', '.join(_COLUMNS)}) WHERE m.month = n.month AND m.message_id = n.message_id"
    " AND m.shard = ANY($1::int[]) AND m.state = 'held' RETURNING m.message_id"
)


class Held(NamedTuple):
    """A message whose time has come; `concerned`: its user still belongs to the audience it was planned for."""

    message: Message
    occurrence: Occurrence
    concerned: bool


class Holding:
    """Looks for held messages that are due, no more often than is worth it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._asked_at = 0.0

    async def due(self, shards: Iterable[int], now_ms: int) -> list[Held]:
        """Those due first come first."""
        if monotonic() - self._asked_at < _POLL_SECONDS:
            return []
        rows = await self._pool.fetch(_DUE, list(shards), now_ms, _MOST)
        self._asked_at = monotonic() if len(rows) < _MOST else 0.0
        found = []
        for row in rows:
            told = dict(row)
            concerned = told.pop("concerned")
            message = Message(**told, variant="treated", state="held")
            found.append(Held(message, msgspec.json.decode(message.held, type=Occurrence), concerned))
        return found


def not_sent(message: Message, reason: Reason, now_ms: int) -> Message:
    """The held message suppressed for a reason that no gate gives."""
    message.state, message.reason, message.planned_at, message.held = "suppressed", reason.value, now_ms, ""
    return message


async def release(connection: Connection, rows: list[Message]) -> set[str]:
    """Write what became of held messages; the ids of those that were held until then."""
    columns = [[getattr(row, name) for row in rows] for name in ("month", "message_id", *_COLUMNS)]
    found = await connection.fetch(_RELEASE, sorted({row.shard for row in rows}), *columns)
    return {row["message_id"] for row in found}
