"""A real shop's eighteen months, against a count of the same file that knows nothing of events, stages or segments."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec
import pytest

from services.demo import cdnow, shopping
from services.demo.phones import people
from services.ingest.domain.intake import Intake, RawRecord, Taken
from services.segmenter.domain.state import CUSTOMER, LOYAL, REPEAT, Hot
from shared.contracts.events import Accepted
from shared.contracts.identifiers import shard_of
from shared.gazetteer import load
from shared.process.clock import iso
from tests.support import oracle
from tests.support.miniature import Miniature
from tests.support.people import DAY, HOUR, T0, Person, in_force, shop

NOON = 12 * HOUR
BROWSERS = 1000
MONTHS = [date(1997 + month // 12, month % 12 + 1, 1) for month in range(1, 19)]
"""The first day after each month of the sample."""
THREE_DATES = [date(1997, 6, 15), date(1997, 12, 31), date(1998, 6, 30)]


class Bought(NamedTuple):
    """A line of the file. The rule for the eight purchases of zero dollars: an order of zero is an order."""

    customer: str
    day: date
    cents: int


@cache
def lines() -> list[Bought]:
    text = gzip.decompress(files("services.demo").joinpath(cdnow.SAMPLE).read_bytes()).decode()
    rows = csv.reader(text.splitlines(), delimiter=" ", skipinitialspace=True)
    return [Bought(r[1], datetime.strptime(r[2], "%Y%m%d").date(), int(Decimal(r[4]) * 100)) for r in rows]  # noqa: DTZ007


class Count(NamedTuple):
    users: int
    customers: int
    repeat: int
    loyal: int
    orders: int
    revenue: int


def independent(before: date) -> Count:
    """Everything sold before a day, and those of the browsers who were there by then."""
    sold = [line for line in lines() if line.day < before]
    days: dict[str, set[date]] = {}
    for line in sold:
        days.setdefault(line.customer, set()).add(line.day)
    on = [len(several) for several in days.values()]
    return Count(
        len(days) + sum(first < before for first in browsers()),
        len(days),
        sum(n >= 2 for n in on),
        sum(n >= 4 for n in on),
        len(sold),
        sum(line.cents for line in sold),
    )


def browsers() -> list[date]:
    """When each of those who never buy opens the app, once: two a day from the first day on."""
    return [date(1997, 1, 1) + timedelta(days=number // 2) for number in range(BROWSERS)]


def silent(on: date) -> dict[str, int]:
    """Days since the last order of every customer, on a day."""
    return {line.customer: (on - line.day).days for line in sorted(lines(), key=lambda b: b.day) if line.day <= on}


def ms(day: date) -> int:
    return (day - date(1970, 1, 1)).days * DAY


class Shop:
    """The product's own intake and fold, user by user, in the order things happened."""

    def __init__(self) -> None:
        self.rules = in_force((0, shop()))
        self.intake = Intake(shop(), load(), 1)
        self.users: dict[str, Person] = {}
        self.taken = 0

    def take(self, event: dict[str, Any], received_at: int, mode: str) -> None:
        user = event["userId"]
        headers = {"mode": mode.encode(), "source": b"shop"}
        raw = RawRecord(0, self.taken, user.encode(), msgspec.json.encode(event), headers, received_at)
        verdict = self.intake.judge(raw)
        assert isinstance(verdict, Taken), verdict
        person = self.users.setdefault(user, Person(self.rules))
        person.see(
            Accepted(
                self.taken, self.taken - 1, b"", 1, verdict.user_id, verdict.message_id, verdict.name,
                verdict.occurred_at, received_at, verdict.mode, verdict.source, verdict.city_id, verdict.properties,
                verdict.context,
            )
        )  # fmt: skip
        self.taken += 1

    def tick(self, moment: int) -> None:
        for person in self.users.values():
            person.tick(moment)

    def states(self) -> Iterator[Hot]:
        return (person.state for person in self.users.values())

    def count(self) -> Count:
        flags = [hot.flags for hot in self.states()]
        return Count(
            len(flags),
            sum(bool(f & CUSTOMER) for f in flags),
            sum(bool(f & REPEAT) for f in flags),
            sum(bool(f & LOYAL) for f in flags),
            sum(hot.orders for hot in self.states()),
            sum(hot.revenue for hot in self.states()),
        )

    def members(self, segment: str) -> set[str]:
        return {user.removeprefix("cdnow-") for user, person in self.users.items() if segment in person.state.segments}


def opened(number: int, at: int) -> dict[str, Any]:
    return {"type": "track", "event": "Application Opened", "userId": f"browser-{number}", "timestamp": iso(at)}


def live() -> Iterator[tuple[int, dict[str, Any]]]:
    """Every event at its moment, in order: orders at noon of their day."""
    events = [(p.day * DAY + NOON, cdnow.order(p, p.day * DAY + NOON)) for p in cdnow.purchases()]
    events += [(ms(day) + HOUR, opened(number, ms(day) + HOUR)) for number, day in enumerate(browsers())]
    yield from sorted(events, key=lambda one: one[0])


def test_the_file_is_the_one_that_is_known() -> None:
    """Fader and Hardie's own figures of the sample; a line lost would be lost on both sides of every other test."""
    sold = lines()
    assert (len(sold), len({line.customer for line in sold})) == (6919, 2357)
    assert (min(s.day for s in sold), max(s.day for s in sold)) == (date(1997, 1, 1), date(1998, 6, 30))
    assert sum(line.cents == 0 for line in sold) == 8


def test_every_month_ends_with_the_independent_count() -> None:
    """Users, customers, repeat and loyal customers, orders and revenue as they stood then, not only in the end."""
    world, events = Shop(), list(live())
    for month in MONTHS:
        while events and events[0][0] < ms(month):
            at, event = events.pop(0)
            world.take(event, at, "live")
        world.tick(ms(month))
        assert world.count() == independent(month), month
    assert not events


@pytest.mark.parametrize("on", THREE_DATES, ids=str)
def test_at_risk_and_lapsed_are_the_independent_ones(on: date) -> None:
    """Customers by their last order, and the pulse of all of them, at the noon of a day."""
    world = Shop()
    for at, event in live():
        if at <= ms(on) + NOON:
            world.take(event, at, "live")
    world.tick(ms(on) + NOON)
    days = silent(on)
    assert world.members("customers_at_risk") == {c for c, ago in days.items() if 90 <= ago < 180}
    assert world.members("customers_lapsed") == {c for c, ago in days.items() if ago >= 180}
    activity = shop().activity
    pulse = {user.removeprefix("cdnow-"): person.state.activity for user, person in world.users.items()}
    for customer, ago in days.items():
        if ago >= activity.lapsed:
            assert pulse[customer] == "lapsed"
        elif ago >= activity.inactive:
            assert pulse[customer] == "inactive"
        elif ago >= activity.at_risk:
            assert pulse[customer] == "at_risk"
        else:
            assert pulse[customer] in ("new", "active", "reactivated")
    assert len(world.members("customers_at_risk")) > 100


def test_imported_as_history_it_comes_to_the_same() -> None:
    """All of it received at one moment, years late, twice, and among people who only look."""
    now = T0 + 7 * HOUR
    world = Shop()
    everyone = people(1, BROWSERS, load())
    for person in everyone:
        for post in (shopping.history(person, now), shopping.arrival(person, 0, now)):
            for event in post.body["batch"] if post is not None else []:
                world.take(event, now, "import" if post and post.path == "/v1/import" else "live")
    looking = len(world.users)
    for _ in range(2):
        for post in cdnow.history(now):
            assert post.path == "/v1/import" and len(msgspec.json.encode(post.body)) < 500_000
            for event in post.body["batch"]:
                world.take(event, now, "import")
    in_the_end = independent(date(1999, 1, 1))
    assert world.count() == in_the_end._replace(users=len({b.customer for b in lines()}) + looking)
    assert looking > 0.8 * BROWSERS
    world.tick(now)
    days = silent(max(line.day for line in lines()))
    assert world.members("customers_at_risk") == {c for c, ago in days.items() if 90 <= ago + 0.5 < 180}
    assert world.members("customers_lapsed") == {c for c, ago in days.items() if ago + 0.5 >= 180}


def test_the_pipeline_keeps_the_same_totals_and_the_oracle_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from the tallies, after batches that load and forget users; the independent refold finds no difference."""
    world = Miniature({1: msgspec.structs.replace(shop(), campaigns=[])}, monkeypatch)
    some = [p for p in cdnow.purchases() if int(p.customer) % 8 == 0]
    owner = world.owner()
    for number, purchase in enumerate(sorted(some, key=lambda p: p.day)):
        at = world.clock.now = purchase.day * DAY + NOON
        assert world.post(cdnow.order(purchase, at), at) == shard_of(purchase.user_id, world.shards)
        if number % 150 == 149:
            for shard in range(world.shards):
                world.decide(shard, 1)
                world.tell_time(shard, at, 1)
            owner.work()
            owner = world.owner()  # who has to load every user again
    end = world.clock.now + 200 * DAY
    for shard in range(world.shards):
        world.decide(shard, 1)
        world.tell_time(shard, end, 1)
    for _ in range(20):
        owner.work()
    assert oracle.judge(world.snapshot()).differences == []

    def total(kind: str, name: str) -> int:
        return sum(n for (_, k, of), n in world.tallies.items() if (k, of) == (kind, name))

    bought = [line for line in lines() if int(line.customer) % 8 == 0]
    assert total("users", "all") == total("rate", "customer") == len({line.customer for line in bought})
    assert (total("total", "orders"), total("total", "revenue")) == (len(bought), sum(line.cents for line in bought))
    assert total("segment", "customers_lapsed") == total("users", "all")
