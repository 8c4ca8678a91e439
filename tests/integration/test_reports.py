"""Whether reports by day and month are what happened then: a real shop's file, counted beside it with pandas.

The file is imported over HTTP, out of order, at its own dates: the installation's clock stands in 1997 and 1998.
"""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Any

import aiohttp
import msgspec
import pandas as pd
import pytest

from services.demo import cdnow
from services.ingest.gateway.app import make_app as make_gateway
from services.ingest.gateway.keys import KeyBook
from services.ingest.gateway.settings import GatewaySettings
from services.segmenter.api import make_app
from shared.contracts.topics import Topic
from shared.data.keys import key_hash
from shared.kafka.sender import Record
from shared.process.clock import iso
from shared.process.http import Health, serve
from tests.support.people import DAY, HOUR, shop
from tests.support.ports import free_base
from tests.support.spine import SHARDS, Site, until

NOON = 12 * HOUR
VOID_EVERY = 50
BROWSERS = 300


class Outlet:
    """The test's broker, as the gateway's collector wants it."""

    away = ""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def send(self, partition: int, records: list[Record]) -> None:
        await self._site.produce(Topic.RAW, partition, *records)

    def suspect(self) -> None:
        """Nothing else is done here about a broker that is slow."""


class Door:
    """Both HTTP sides of the installation: events in, reports out."""

    def __init__(self, http: aiohttp.ClientSession, port: int) -> None:
        self._http, self._in, self._out = http, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"

    async def bring(self, events: Iterable[Mapping[str, Any]]) -> None:
        several = list(events)
        key = {"Authorization": "Basic " + base64.b64encode(b"demo:").decode()}
        for start in range(0, len(several), cdnow.PER_POST):
            body = msgspec.json.encode({"batch": several[start : start + cdnow.PER_POST]})
            async with self._http.post(f"{self._in}/v1/import", data=body, headers=key) as answer:
                assert answer.status == 200, await answer.text()

    async def ask(self, path: str, params: Mapping[str, str] | None = None, status: int = 200) -> Any:
        key = {"Authorization": "Bearer admin"}
        async with self._http.get(f"{self._out}{path}", params=params, headers=key) as answer:
            assert answer.status == status, await answer.text()
            return await answer.json()


@asynccontextmanager
async def opened(site: Site) -> AsyncIterator[Door]:
    """A shop's installation with its doors open. Its clock must have been set."""
    rules = msgspec.structs.replace(shop(), campaigns=[])
    version = await site.install(rules)
    await site.pool.execute(
        "INSERT INTO control.key (sha256, kind, source, scopes) VALUES ($1, 'admin', 'test', '{read}')",
        key_hash("admin"),
    )
    port = free_base()
    health = Health()
    gateway, collector = make_gateway(
        KeyBook.of(app="demo"), Outlet(site), health, site.clock, SHARDS, GatewaySettings()
    )
    api = make_app(site.pool, site.gazetteer, SHARDS, site.clock, health)
    async with (
        site.ingest(version=version, rules=rules) as running,
        site.segmenter() as segmenting,
        aiohttp.ClientSession() as http,
    ):
        running.add(collector.run())
        running.add(serve(gateway, "127.0.0.1", port))
        running.add(serve(api, "127.0.0.1", port + 1))
        door = Door(http, port)

        async def serves() -> bool:
            running.check()
            segmenting.check()
            try:
                await asyncio.gather(*(http.get(f"http://127.0.0.1:{port + n}/healthz") for n in (0, 1)))
            except aiohttp.ClientConnectorError:
                return False
            return True

        await until(serves)
        yield door


@pytest.fixture(scope="module")
def sold() -> pd.DataFrame:
    """The file, a purchase a line: customer, day, cents, number of the line."""
    path = files("services.demo").joinpath(cdnow.SAMPLE)
    names = ["whole", "customer", "day", "discs", "dollars"]
    lines = pd.read_csv(
        str(path), sep=r"\s+", header=None, names=names, dtype={"customer": str, "day": str}, compression="gzip"
    )
    lines["day"] = pd.to_datetime(lines["day"], format="%Y%m%d")
    lines["cents"] = (lines["dollars"] * 100).round().astype(int)
    lines["number"] = lines.index + 1
    return lines


def rates_by_month(orders: pd.DataFrame, browsers: pd.Series) -> list[dict[str, Any]]:
    """Of the orders that count. A customer of a kind is one from the day of the order that makes them one."""
    days = orders[["customer", "day"]].drop_duplicates().sort_values("day")
    days["nth"] = days.groupby("customer").cumcount() + 1
    months = pd.period_range("1997-01", "1998-06", freq="M")
    since = {kind: days[days["nth"] == nth]["day"] for kind, nth in (("customers", 1), ("repeat", 2), ("loyal", 4))}
    in_month = orders.groupby(orders["day"].dt.to_period("M"))["cents"].agg(["count", "sum"])
    found = []
    for month in months:
        count = {kind: int((moments.dt.to_period("M") <= month).sum()) for kind, moments in since.items()}
        found.append(
            {
                "period": str(month),
                "users": int((browsers.dt.to_period("M") <= month).sum()),
                "customers": count["customers"],
                "repeat_customers": count["repeat"],
                "loyal_customers": count["loyal"],
                "orders": int(in_month.loc[month, "count"]),
                "revenue": int(in_month.loc[month, "sum"]),
            }
        )
    return found


def growth_by_month(active: pd.DataFrame) -> list[dict[str, Any]]:
    """From a table of who was active in which month."""
    months = pd.period_range("1997-01", "1998-06", freq="M")
    was = pd.crosstab(active["user"], active["day"].dt.to_period("M")).reindex(columns=months, fill_value=0) > 0
    found = []
    for number, month in enumerate(months):
        now = was[month]
        before = was[months[number - 1]] if number else now & False
        ever = was[months[:number]].any(axis=1)
        found.append(
            {
                "period": str(month),
                "new": int((now & ~ever).sum()),
                "retained": int((now & before).sum()),
                "resurrected": int((now & ever & ~before).sum()),
                "churned": int((before & ~now).sum()),
                "active": int(now.sum()),
            }
        )
    return found


def only(items: list[dict[str, Any]], like: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: item[name] for name in like[0]} for item in items]


@pytest.mark.timeout(120)
async def test_a_real_shop_is_counted_in_its_own_months(site: Site, sold: pd.DataFrame) -> None:
    """Orders told in any order, some cancelled long afterwards, people who never buy; and who is at risk or lapsed at
    three dates. A count that hung on the order of telling, on today's date, or on what a batch held in memory would
    differ somewhere."""
    shuffled = random.Random(7)
    browsing = pd.Series(pd.date_range("1997-01-01", periods=BROWSERS, freq="36h").normalize())
    purchases = {p.number: p for p in cdnow.purchases()}
    site.move_time(_ms("1996-12-31") + NOON)
    async with opened(site) as door:
        told = pd.Timestamp("1996-12-31")
        for on in map(pd.Timestamp, ("1997-06-15", "1997-12-31", "1998-06-30")):
            await _comes_to(site, _ms(on) + NOON)
            new = sold[(sold["day"] > told) & (sold["day"] <= on)]
            events = [cdnow.order(purchases[n], purchases[n].day * DAY + NOON) for n in new["number"]]
            events += [_opening(n, day) for n, day in browsing.items() if told < day <= on]
            shuffled.shuffle(events)
            await door.bring(events)
            ago = (on - sold[sold["day"] <= on].groupby("customer")["day"].max()).dt.days
            expected = {
                "rate:customer": len(ago),
                "segment:customers_at_risk": int(((ago >= 90) & (ago < 180)).sum()),
                "segment:customers_lapsed": int((ago >= 180).sum()),
            }
            await until(partial(_told, site, _ms(on) + NOON, expected))
            told = on

        await _equal(door, sold, browsing)
        # a month later one in fifty orders is cancelled: what was never kept was never sold
        void = sold[sold["number"] % VOID_EVERY == 0]
        await _comes_to(site, _ms("1998-07-31"))
        await door.bring(_cancellation(purchases[n].user_id, n, _ms("1998-07-30")) for n in void["number"])
        kept = sold.drop(void.index)

        async def cancelled() -> bool:
            return bool((await door.ask("/v1/rates"))["orders"] == len(kept))

        await until(cancelled)
        await _equal(door, kept, browsing, everyone=sold)
        await _refusals(door)
        now, last = await door.ask("/v1/rates"), (await door.ask("/v1/rates", {"by": "month"}))["items"][-1]
        assert last["period"] == "1998-07"
        assert {name: last[name] for name in now if name not in ("orders", "revenue")} == {
            name: value for name, value in now.items() if name not in ("orders", "revenue")
        }


async def _equal(door: Door, orders: pd.DataFrame, browsing: pd.Series, everyone: pd.DataFrame | None = None) -> None:
    """Rates and growth by month and March 1997 by day, as they are and as they should be."""
    told = orders if everyone is None else everyone
    acts = pd.concat(
        [
            told[["customer", "day"]].rename(columns={"customer": "user"}),
            pd.DataFrame({"user": [f"browser-{n}" for n in browsing.index], "day": browsing}),
        ]
    )
    months = {"from": "1997-01", "to": "1998-06", "by": "month"}
    should = rates_by_month(orders, acts.groupby("user")["day"].min())
    assert only((await door.ask("/v1/rates", months))["items"], should) == should
    grown = growth_by_month(acts)
    assert (await door.ask("/v1/growth", months))["items"] == grown
    march = (await door.ask("/v1/rates", {"from": "1997-03-01", "to": "1997-03-31"}))["items"]
    per_day = orders[orders["day"].dt.to_period("M") == "1997-03"].groupby("day")["cents"].agg(["count", "sum"])
    per_day = per_day.reindex(pd.date_range("1997-03-01", "1997-03-31"), fill_value=0)
    assert [(i["period"], i["orders"], i["revenue"]) for i in march] == [
        (str(day.date()), int(row["count"]), int(row["sum"])) for day, row in per_day.iterrows()
    ]


async def _comes_to(site: Site, moment: int) -> None:
    """Move the clock, and wait until who goes by it has looked: until then, what happens now lies in the future."""
    site.move_time(moment)

    async def reached() -> bool:
        return site.clock.now_ms() >= moment

    await until(reached)


async def _told(site: Site, as_of: int, expected: Mapping[str, int]) -> bool:
    """Whether time has come to `as_of`, and these counts are what they should be."""
    watermarks = [row["watermark"] for row in await site.rows("SELECT watermark FROM segmenter.shard_time")]
    if len(watermarks) < SHARDS or min(watermarks) < as_of:
        return False
    found = await site.tallies()
    return {name: found.get(name, 0) for name in expected} == expected


async def _refusals(door: Door) -> None:
    for params in (
        {"from": "yesterday"}, {"to": "1997-02-30"}, {"by": "week"}, {"from": "1998-01-02", "to": "1998-01-01"},
        {"from": "1998-08-01"}, {"from": "1970-01-01"}, {"from": "0001-01"}, {"to": "1997-1-1"},
    ):  # fmt: skip
        for path in ("/v1/rates", "/v1/growth"):
            told = await door.ask(path, params, 400)
            assert told["code"] == "bad_period" and told["message"], params


def _ms(day: str | pd.Timestamp) -> int:
    return int(pd.Timestamp(day).timestamp() * 1000)


def _opening(number: int, day: pd.Timestamp) -> dict[str, Any]:
    at = iso(_ms(day) + HOUR)
    return {"type": "track", "event": "Application Opened", "userId": f"browser-{number}", "timestamp": at}


def _cancellation(user: str, number: int, at: int) -> dict[str, Any]:
    told = {"order_id": f"cdnow-{number}"}
    return {"type": "track", "event": "Order Cancelled", "userId": user, "timestamp": iso(at), "properties": told}
