"""Which forecast holds for a city at a moment: the newest by the order of the context log.

A forecast takes the place of what was said for the same time: one that begins within it is forgotten, one that began
before it ends where it begins. So no two of a city overlap, and forecasts for the days to come stand side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from services.notifier.context.forecasts import Forecast
from shared.data.db import Connection, Pool
from shared.process.clock import iso

_FORGET = """
DELETE FROM notifier.forecast f USING unnest($1::int[], $2::bigint[], $3::bigint[]) AS n(city_id, starts_at, ends_at)
WHERE f.city_id = n.city_id AND (f.ends_at <= $4 OR (f.starts_at >= n.starts_at AND f.starts_at < n.ends_at))
"""
_CUT = """
UPDATE notifier.forecast f SET ends_at = n.starts_at FROM unnest($1::int[], $2::bigint[]) AS n(city_id, starts_at)
WHERE f.city_id = n.city_id AND f.starts_at < n.starts_at AND f.ends_at > n.starts_at
"""
_KEEP = """
INSERT INTO notifier.forecast (city_id, starts_at, ends_at, context_id, log_id, context_offset, body, received_at)
SELECT * FROM unnest(
    $1::int[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::json[], $8::bigint[])
"""
_VALID = """
SELECT city_id, body, ends_at FROM notifier.forecast
WHERE city_id = ANY($1::int[]) AND starts_at <= $2 AND ends_at > $2
"""
_CITIES = "SELECT city_id FROM notifier.forecast WHERE starts_at <= $1 AND ends_at > $1"


class Told(NamedTuple):
    """A forecast as the log told it."""

    forecast: Forecast
    log_id: str
    offset: int
    received_at: int


class Valid(NamedTuple):
    """What may be said of a city, until when."""

    facts: dict[str, Any]
    ends_at: int


async def keep(connection: Connection, several: Iterable[Told], now_ms: int) -> int:
    """Have these hold, each after the one before it; how many were over already, and are not kept."""
    rounds: list[dict[int, Told]] = []
    seen: Counter[int] = Counter()
    over = 0
    for told in several:
        if told.forecast.ends_at <= now_ms:
            over += 1
            continue
        for city_id in told.forecast.city_ids:
            if seen[city_id] == len(rounds):
                rounds.append({})
            rounds[seen[city_id]][city_id] = told
            seen[city_id] += 1
    for once in rounds:
        cities, ones = list(once), list(once.values())
        starts, ends = [t.forecast.starts_at for t in ones], [t.forecast.ends_at for t in ones]
        await connection.execute(_FORGET, cities, starts, ends, now_ms)
        await connection.execute(_CUT, cities, starts)
        await connection.execute(
            _KEEP, cities, starts, ends, [t.forecast.id for t in ones], [t.log_id for t in ones],
            [t.offset for t in ones], [msgspec.json.encode(t.forecast.facts).decode() for t in ones],
            [t.received_at for t in ones],
        )  # fmt: skip
    return over


async def valid(connection: Connection | Pool, city_ids: list[int], at_ms: int) -> dict[int, Valid]:
    """The forecasts that hold for these cities at that moment."""
    return {
        row["city_id"]: Valid({**msgspec.json.decode(row["body"]), "ends_at": iso(row["ends_at"])}, row["ends_at"])
        for row in await connection.fetch(_VALID, city_ids, at_ms)
    }


async def cities(connection: Connection, at_ms: int) -> set[int]:
    """Where a forecast holds at that moment."""
    return {row["city_id"] for row in await connection.fetch(_CITIES, at_ms)}
