"""How a message that has to wait is judged when its time has come, once: held until its user's quiet hours are over, by
the clock, or waiting for the end of its campaign's delay, by the time the feed has told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from services.notifier import forecasts
from services.notifier.domain import gates
from services.notifier.domain.campaign import Occurrence
from services.notifier.domain.gates import Reason
from services.notifier.forecasts import Valid
from services.notifier.messages import CONCERNED, Message, explained
from services.notifier.runs import telling
from shared.contracts.events import FeedRow
from shared.data.db import Connection, Pool
from shared.process.clock import monotonic

_MOST = 1000
_POLL_SECONDS = 0.5

_ROW = (
    "m.month, m.message_id, m.shard, m.user_id, m.campaign, m.campaign_version, m.occurrence, m.state, m.planned_at,"
    " m.cause_gen, m.cause_seq, m.cause_src, m.run_id, m.on_unknown, m.category, m.release_at, m.held, m.explain,"
    " m.city_id, m.chain, m.action, m.sound, m.told, m.device_id"
)
_DUE = f"""
SELECT {_ROW}, ({CONCERNED}) AS concerned, r.context = 'forecast' AS foretold, r.valid_until, m.chain <> '' AND EXISTS (
    SELECT FROM notifier.alert_chain a WHERE a.alert_id = r.context_id AND a.replaced_by <> ''
) AS superseded
FROM unnest($1::int[], $2::text[], $3::bigint[]) AS o(shard, state, until) CROSS JOIN LATERAL (
    SELECT * FROM notifier.message t WHERE t.shard = o.shard AND t.state = o.state AND t.state IN ('held', 'waiting')
        AND t.release_at <= o.until ORDER BY t.release_at LIMIT $4
) m
LEFT JOIN notifier.run r ON r.run_id = m.run_id
ORDER BY m.release_at, m.planned_at, m.message_id LIMIT $4
"""  # noqa: S608
_WAITING = f"""
SELECT {_ROW} FROM unnest($1::int[], $2::text[]) AS n(shard, user_id) CROSS JOIN LATERAL (
    SELECT * FROM notifier.message t
    WHERE t.shard = n.shard AND t.user_id = n.user_id AND t.state IN ('held', 'waiting') OFFSET 0
) m
"""  # noqa: S608
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
    " AND m.shard = ANY($1::int[]) AND m.state IN ('held', 'waiting') RETURNING m.message_id"
)


class Held(NamedTuple):
    """A message that has to wait; `concerned`: its user still belongs to the audience it was planned for; `superseded`:
    the alert it is of was replaced meanwhile."""

    message: Message
    occurrence: Occurrence
    concerned: bool = True
    superseded: bool = False


class Holding:
    """Looks for messages that are due, no more often than is worth it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._asked_at = 0.0

    async def due(self, shards: Iterable[int], now_ms: int, told: Mapping[int, int]) -> list[Held]:
        """Those due first come first. `told`: by shard, up to when the feed has told everything."""
        if monotonic() - self._asked_at < _POLL_SECONDS:
            return []
        asked = [(shard, "held", now_ms) for shard in shards] + [(shard, "waiting", at) for shard, at in told.items()]
        rows = await self._pool.fetch(_DUE, *map(list, zip(*asked, strict=True)), _MOST) if asked else []
        self._asked_at = monotonic() if len(rows) < _MOST else 0.0
        cities = {row["city_id"] for row in rows if row["foretold"]}
        known = await forecasts.valid(self._pool, list(cities), now_ms) if cities else {}
        return [_told_anew(dict(row), known, now_ms) for row in rows]


def _told_anew(row: dict[str, Any], known: Mapping[int, Valid], now_ms: int) -> Held:
    """With the forecast that holds by now; where none does, what was to be told is over."""
    foretold, valid_until = row.pop("foretold"), row.pop("valid_until")
    held = _held(row)
    if not foretold:
        return held
    told = known.get(held.message.city_id)
    if told is None:
        return held._replace(occurrence=replace(held.occurrence, valid_until=now_ms))
    return held._replace(occurrence=telling(replace(held.occurrence, valid_until=valid_until), told))


async def of_users(pool: Pool, keys: Iterable[tuple[int, str]]) -> list[Held]:
    """Whatever has to wait of these (shard, user)."""
    wanted = sorted(set(keys))
    rows = await pool.fetch(_WAITING, [k[0] for k in wanted], [k[1] for k in wanted]) if wanted else []
    return [_held(dict(row)) for row in rows]


def _held(row: dict[str, Any]) -> Held:
    concerned, superseded = row.pop("concerned", True), row.pop("superseded", False)
    message = Message(**row, variant="treated")
    return Held(message, msgspec.json.decode(message.held, type=Occurrence), concerned, superseded)


def not_sent(message: Message, reason: Reason, now_ms: int) -> Message:
    """The message suppressed for a reason that no gate gives."""
    message.state, message.reason, message.planned_at, message.held = "suppressed", reason.value, now_ms, ""
    return message


def called_off(message: Message, row: FeedRow, now_ms: int) -> Message:
    """The message suppressed because of what the row says."""
    message.explain = explained([gates.called_off(row)])
    return not_sent(message, Reason.CALLED_OFF, now_ms)


async def release(connection: Connection, rows: list[Message]) -> set[str]:
    """Write what became of messages that had to wait; the ids of those that did until then."""
    columns = [[getattr(row, name) for row in rows] for name in ("month", "message_id", *_COLUMNS)]
    found = await connection.fetch(_RELEASE, sorted({row.shard for row in rows}), *columns)
    return {row["message_id"] for row in found}
