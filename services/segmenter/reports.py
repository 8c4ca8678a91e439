"""What came to be when, as `/v1/rates`, `/v1/growth`, `/v1/activity` tell it: from counts of days, never from users."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from services.segmenter.domain.returns import ACTIVE, LONG, MONTHS, NAMES
from services.segmenter.periods import Periods
from services.segmenter.queries import RATES, percent, percents, snapshot
from shared.data.db import Pool
from shared.process.clock import iso_or_none

_DAYS = """
SELECT kind, name, day, sum(users)::bigint AS users FROM segmenter.tally_day
WHERE kind = ANY($1::text[]) AND day >= $2 AND day < $3 GROUP BY kind, name, day
"""
_SINCE = """
SELECT kind, name, day, sum(users)::bigint AS users FROM segmenter.tally_day
WHERE kind = ANY($1::text[]) AND day >= $2 GROUP BY kind, name, day
"""
_WATERMARK = "SELECT min(watermark) FROM segmenter.shard_time"
_STOCKS = {
    "users": ("users", "all"),
    "customers": ("rate", "customer"),
    "repeat_customers": ("rate", "repeat"),
    "loyal_customers": ("rate", "loyal"),
}
_FLOWS = {"orders": ("total", "orders"), "revenue": ("total", "revenue")}
Counts = Mapping[tuple[str, str], Mapping[int, int]]
"""(kind, name) → day → count"""


async def rates(pool: Pool, periods: Periods) -> dict[str, Any]:
    """Rates at the end of each period, told from now backwards: what is counted now, less what came to be later. So
    they agree with the rates of now, and count users from before there were counts of days."""
    async with snapshot(pool) as connection:
        now = {(row["kind"], row["name"]): row["users"] for row in await connection.fetch(RATES)}
        found = _grouped(await connection.fetch(_SINCE, ["users", "rate", "total"], periods.starts[0]))
        watermark = await connection.fetchval(_WATERMARK)
    moved = {name: periods.sums(found.get(key, {})) for name, key in (_STOCKS | _FLOWS).items()}
    standing = {name: now.get(key, 0) - moved[name].pop() for name, key in _STOCKS.items()}
    items: list[dict[str, Any]] = []
    for number, start in reversed(list(enumerate(periods.starts))):
        came = {name: moved[name][number] for name in _STOCKS}
        items.append(
            {
                "period": periods.name(start),
                **standing,
                **percents(standing),
                **{f"new_{name}": users for name, users in came.items()},
                **{name: moved[name][number] for name in _FLOWS},
            }
        )
        standing = {name: users - came[name] for name, users in standing.items()}
    return _answer(items[::-1], watermark)


async def growth(pool: Pool, periods: Periods) -> dict[str, Any]:
    kind = ACTIVE if periods.by == "day" else MONTHS
    async with snapshot(pool) as connection:
        found = _grouped(await connection.fetch(_DAYS, [kind], periods.before(), periods.end))
        watermark = await connection.fetchval(_WATERMARK)
    active = _active(found, kind)
    items = []
    for before, start in zip((periods.before(), *periods.starts), periods.starts, strict=False):
        new, retained = (found.get((kind, pause), {}).get(start, 0) for pause in NAMES[:2])
        items.append(
            {
                "period": periods.name(start),
                "new": new,
                "retained": retained,
                "resurrected": active.get(start, 0) - new - retained,
                "churned": active.get(before, 0) - retained,
                "active": active.get(start, 0),
            }
        )
    return _answer(items, watermark)


async def activity(pool: Pool, periods: Periods) -> dict[str, Any]:
    async with snapshot(pool) as connection:
        kinds = [ACTIVE, "visit"]
        found = _grouped(await connection.fetch(_DAYS, kinds, periods.starts[0] - LONG, periods.end))
        watermark = await connection.fetchval(_WATERMARK)
    active = _active(found, ACTIVE)
    items = []
    for day in periods.starts:
        dau, mau = active.get(day, 0), within(found, day, 30)
        sessions, screens = (found.get(("visit", name), {}).get(day, 0) for name in ("sessions", "screens"))
        items.append(
            {
                "period": periods.name(day),
                "dau": dau,
                "wau": within(found, day, 7),
                "mau": mau,
                "stickiness_percent": percent(dau, mau),
                "sessions": sessions,
                "screens": screens,
                "session_depth": round(screens / sessions, 2) if sessions else 0.0,
            }
        )
    return _answer(items, watermark)


def within(found: Counts, last: int, days: int) -> int:
    """Users active on any of the `days` that end with `last`: each is counted on the first of these on which they were,
    which is the one before which they paused for so long that their day before lies outside."""
    count = 0
    for back in range(days):
        # the day `back` before the last is the first within if the one before it is at least this far away
        least = days - back
        for pause in (NAMES[0], *NAMES[least:]):
            count += found.get((ACTIVE, pause), {}).get(last - back, 0)
    return count


def _active(found: Counts, kind: str) -> dict[int, int]:
    """All users active, by day or month."""
    active: dict[int, int] = {}
    for (of, _), by_day in found.items():
        if of == kind:
            for day, users in by_day.items():
                active[day] = active.get(day, 0) + users
    return active


def _grouped(rows: Iterable[Any]) -> dict[tuple[str, str], dict[int, int]]:
    found: dict[tuple[str, str], dict[int, int]] = {}
    for row in rows:
        found.setdefault((row["kind"], row["name"]), {})[row["day"]] = row["users"]
    return found


def _answer(items: list[dict[str, Any]], watermark: int | None) -> dict[str, Any]:
    """`watermark`: everything received before it is counted."""
    return {"items": items, "next": None, "watermark": iso_or_none(watermark or None)}
