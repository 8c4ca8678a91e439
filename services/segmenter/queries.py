"""What the segmenter's read API asks of Postgres; no count scans users."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from services.segmenter.domain.state import Hot, Shop, decode_hot, told_consents
from services.segmenter.domain.visited import visits
from services.segmenter.publish import change
from shared.contracts.identifiers import shard_of
from shared.data.db import Connection, Pool
from shared.data.ledger import LedgerRow
from shared.gazetteer import Gazetteer
from shared.process.clock import iso, iso_or_none

_USER = """
SELECT u.hot, u.rules_version, (
    SELECT max(l.seq) FROM segmenter.ledger l WHERE l.shard = u.shard AND l.user_id = u.user_id
) AS seq
FROM segmenter.user_state u WHERE u.shard = $1 AND u.user_id = $2
"""
_TIMELINE = """
SELECT * FROM segmenter.ledger WHERE shard = $1 AND user_id = $2 AND seq > $3 ORDER BY seq LIMIT $4
"""
_TALLIES = """
SELECT kind, name, sum(users)::bigint AS users FROM segmenter.tally
WHERE kind IN ('users', 'stage', 'activity', 'segment') GROUP BY kind, name HAVING sum(users) <> 0 ORDER BY kind, name
"""
RATES = """
SELECT kind, name, sum(users)::bigint AS users FROM segmenter.tally WHERE kind IN ('users', 'rate', 'total')
GROUP BY 1, 2
"""
_COHORTS = """
SELECT name, sum(users)::bigint AS users FROM segmenter.tally
WHERE kind = 'cohort' AND ($1 = '' OR name LIKE $1 || ':%') GROUP BY name HAVING sum(users) > 0
ORDER BY users DESC, name
"""


def place(gazetteer: Gazetteer, city_id: int, count: int = 0, last_at: int = -1) -> dict[str, Any]:
    known = gazetteer.get(city_id)
    return {
        "city_id": str(city_id),
        "name": known.name if known else None,
        "state": known.state if known else None,
        "country": known.country if known else None,
        "count": count,
        "last_at": iso_or_none(last_at),
    }


async def user(pool: Pool | Connection, gazetteer: Gazetteer, shards: int, user_id: str) -> dict[str, Any] | None:
    """A user as `GET /v1/users/{id}` shows them; None when unknown; of one who is part of another only who that is."""
    row = await pool.fetchrow(_USER, shard_of(user_id, shards), user_id)
    if row is None:
        return None
    hot: Hot = decode_hot(row["hot"])
    if hot.merged_into:
        return {"user_id": user_id, "merged_into": hot.merged_into}
    return {
        "user_id": user_id,
        "stage": hot.stage,
        "activity": hot.activity,
        "first_seen_at": iso(hot.first_seen_at),
        "last_seen_at": iso(hot.last_seen_at),
        "last_activity_at": iso_or_none(hot.last_activity_at),
        "sessions": hot.sessions,
        "session_depth": round(hot.screens / hot.sessions, 2) if hot.sessions else 0.0,
        "cities": {
            "default": place(gazetteer, hot.default_city) if hot.default_city else None,
            "searched": [place(gazetteer, v.city_id, v.count, v.last_at) for v in visits(hot.searched)],
            "added": [place(gazetteer, v.city_id, v.count, v.last_at) for v in visits(hot.added)],
        },
        "segments": list(hot.segments),
        "consents": told_consents(hot.consents),
        "opens": hot.opens,
        "active_days": hot.active_days,
        "orders": hot.orders,
        "revenue": hot.revenue,
        "channel": {"first": hot.first_channel or None, "last": hot.last_channel or None},
        "rfm": rfm(hot),
        "shop": bought(hot.shop) if hot.shop is not None else None,
        "due_at": iso_or_none(hot.due_at),
        "rules_version": row["rules_version"],
        "seq": row["seq"],
    }


def rfm(hot: Hot) -> dict[str, Any] | None:
    """Recency, frequency and money of a customer, in minor units; None for whoever has no net order."""
    if not hot.orders or hot.shop is None:
        return None
    return {
        "last_order_at": iso(hot.shop.last_order_at),
        "orders": hot.orders,
        "order_days": hot.order_days,
        "revenue": hot.revenue,
        "average_order": hot.revenue // hot.orders,
    }


def bought(made: Shop) -> dict[str, Any]:
    """What a user did in a shop, as `GET /v1/users/{id}` shows it."""
    return msgspec.structs.asdict(made) | {
        "last_order_at": iso_or_none(made.last_order_at),
        "viewed_at": [iso(at) for at in made.viewed_at],
        "score": made.score if made.score >= 0 else None,
        "scored_at": iso_or_none(made.scored_at),
    }


async def timeline(pool: Pool, shards: int, user_id: str, after: int, limit: int) -> list[dict[str, Any]]:
    """Ledger rows of a user behind `after`, each with the raw offset of its cause."""
    rows = await pool.fetch(_TIMELINE, shard_of(user_id, shards), user_id, after, limit)
    items = []
    for row in rows:
        kept = LedgerRow(**{**dict(row), "payload": msgspec.json.decode(row["payload"])})
        raw = {"partition": kept.shard, "offset": kept.src, "log_id": kept.log_id} if kept.src >= 0 else None
        items.append({**change(kept), "raw": raw})
    return items


@asynccontextmanager
async def snapshot(pool: Pool) -> AsyncIterator[Connection]:
    """What is asked through it is all of one moment."""
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        yield connection


async def tallies(pool: Pool) -> dict[str, Any]:
    """Exact counts, all of one moment, and the watermark up to which they are complete."""
    found: dict[str, Any] = {"users": 0, "stage": {}, "activity": {}, "segment": {}}
    async with snapshot(pool) as connection:
        for row in await connection.fetch(_TALLIES):
            if row["kind"] == "users":
                found["users"] = row["users"]
            else:
                found[row["kind"]][row["name"]] = row["users"]
        watermark = await connection.fetchval("SELECT min(watermark) FROM segmenter.shard_time")
    found["watermark"] = iso_or_none(watermark or None)
    return found


async def rates(pool: Pool) -> dict[str, Any]:
    """Seed definitions: activation, repeat and loyal customer rates, each × 100; and net orders and revenue."""
    counted = {(row["kind"], row["name"]): row["users"] for row in await pool.fetch(RATES)}
    users, customers = counted.get(("users", "all"), 0), counted.get(("rate", "customer"), 0)
    repeat, loyal = counted.get(("rate", "repeat"), 0), counted.get(("rate", "loyal"), 0)
    found = {"users": users, "customers": customers, "repeat_customers": repeat, "loyal_customers": loyal}
    return {
        **found,
        **percents(found),
        "orders": counted.get(("total", "orders"), 0),
        "revenue": counted.get(("total", "revenue"), 0),
    }


def percents(of: Mapping[str, int]) -> dict[str, float]:
    """The three rates of a count of users, customers, repeat and loyal customers."""
    return {
        "activation_percent": percent(of["customers"], of["users"]),
        "repeat_percent": percent(of["repeat_customers"], of["customers"]),
        "loyal_percent": percent(of["loyal_customers"], of["repeat_customers"]),
    }


def percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 2) if whole else 0.0


async def cohorts(
    pool: Pool, gazetteer: Gazetteer, relation: str, state: str, city: str, limit: int
) -> list[dict[str, Any]]:
    """Cohorts by size; `state` and `city` (id or name) narrow them."""
    items = []
    for row in await pool.fetch(_COHORTS, relation):
        of, _, city_id = row["name"].partition(":")
        known = gazetteer.get(int(city_id))
        name, within = (known.name, known.state) if known else (None, None)
        if (state and within != state.upper()) or (city and city not in (city_id, name)):
            continue
        items.append({"relation": of, "city_id": city_id, "name": name, "state": within, "users": row["users"]})
        if len(items) == limit:
            break
    return items
