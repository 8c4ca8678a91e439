"""When a schedule's clock shows its time: once for each time on the wall, in every zone, whatever becomes of the clock."""

from __future__ import annotations

from collections import Counter
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notifier.domain.schedule import Moment, faults, moments, over_at, zones
from shared.contracts.rules import ScheduleTrigger
from shared.gazetteer import load
from shared.process.clock import iso, parse_instant
from tests.support.people import DAY, HOUR

DST = ("America/New_York", "Australia/Lord_Howe")
ZONES = (*DST, "America/Phoenix", "Pacific/Honolulu", "Asia/Kolkata")
YEAR = (parse_instant("2026-01-01T00:00:00Z"), parse_instant("2027-01-01T00:00:00Z"))


def _at(trigger: ScheduleTrigger, zone: str, day: str, days: int = 1) -> list[str]:
    """Instants of so many days there."""
    begin = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    edges = [round(edge.timestamp() * 1000) - 1 for edge in (begin, begin + timedelta(days=days))]
    return [iso(m.at)[:16] for m in moments(trigger, zone, *edges)]


@pytest.mark.parametrize(
    ("zone", "day", "at", "instants"),
    [
        # seven in the morning, on both sides of each change
        ("America/New_York", "2026-03-07", "07:00", ["2026-03-07T12:00", "2026-03-08T11:00"]),
        ("America/New_York", "2026-10-31", "07:00", ["2026-10-31T11:00", "2026-11-01T12:00"]),
        ("America/Phoenix", "2026-03-07", "07:00", ["2026-03-07T14:00", "2026-03-08T14:00"]),
        ("Pacific/Honolulu", "2026-10-31", "07:00", ["2026-10-31T17:00", "2026-11-01T17:00"]),
        ("Asia/Kolkata", "2026-03-07", "07:00", ["2026-03-07T01:30", "2026-03-08T01:30"]),
        # the hour from two to three is left out: half past two is half past three, for once
        ("America/New_York", "2026-03-07", "02:30", ["2026-03-07T07:30", "2026-03-08T07:30"]),
        ("America/New_York", "2026-03-08", "02:30", ["2026-03-08T07:30", "2026-03-09T06:30"]),
        # the hour from one to two comes twice: the first counts
        ("America/New_York", "2026-10-31", "01:30", ["2026-10-31T05:30", "2026-11-01T05:30"]),
        ("America/New_York", "2026-11-01", "01:30", ["2026-11-01T05:30", "2026-11-02T06:30"]),
        # Lord Howe moves by half an hour: 02:00 to 02:30 is left out, 01:30 to 02:00 comes twice
        ("Australia/Lord_Howe", "2026-10-03", "02:15", ["2026-10-02T15:45", "2026-10-03T15:45"]),
        ("Australia/Lord_Howe", "2026-10-04", "02:15", ["2026-10-03T15:45", "2026-10-04T15:15"]),
        ("Australia/Lord_Howe", "2026-04-04", "01:45", ["2026-04-03T14:45", "2026-04-04T14:45"]),
        ("Australia/Lord_Howe", "2026-04-05", "01:45", ["2026-04-04T14:45", "2026-04-05T15:15"]),
    ],
)
def test_a_time_of_day_is_an_instant_of_its_zone(zone: str, day: str, at: str, instants: list[str]) -> None:
    assert _at(ScheduleTrigger(at=at), zone, day, days=2) == instants


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("at", ["00:00", "01:30", "02:00", "02:15", "02:30", "03:00", "07:00", "23:59"])
def test_every_day_of_a_year_has_its_moment_once(zone: str, at: str) -> None:
    found = moments(ScheduleTrigger(at=at), zone, *YEAR)
    named = Counter(m.name for m in found)
    clock = ZoneInfo(zone)
    whole = [(date(2026, 1, 2) + timedelta(days=n)).isoformat() for n in range(363)]
    assert all(named[day] == 1 for day in whole) and max(named.values()) == 1
    off = [m.name for m in found if datetime.fromtimestamp(m.at / 1000, clock).strftime("%H:%M") != at]
    assert len(off) <= (zone in DST), off


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("cron", ["0 * * * *", "0 */2 * * *", "30 1,2,3 * * *"])
def test_times_of_a_cron_come_once_each_and_no_two_together(zone: str, cron: str) -> None:
    """Given a zone, the library lets `0 * * * *` pass the hour that comes twice two times."""
    found = moments(ScheduleTrigger(cron=cron), zone, *YEAR)
    assert max(Counter(m.name for m in found).values()) == 1
    assert len({m.at for m in found}) == len(found) and found == sorted(found)
    assert min(b.at - a.at for a, b in pairwise(found)) >= HOUR // 2


@given(st.data())
def test_asking_in_pieces_finds_the_same(data: st.DataObject) -> None:
    """What is due does not depend on when one looks."""
    zone = data.draw(st.sampled_from(ZONES))
    trigger = data.draw(st.sampled_from([ScheduleTrigger(at="02:15"), ScheduleTrigger(cron="30 */2 * * *")]))
    begin = data.draw(st.sampled_from(["2026-03-06", "2026-04-03", "2026-10-02", "2026-10-30"]))
    start = parse_instant(f"{begin}T00:00:00Z")
    cuts = sorted(data.draw(st.lists(st.integers(start, start + 4 * DAY), max_size=6)))
    edges = [start, *cuts, start + 4 * DAY]
    pieces = [m for a, b in pairwise(edges) for m in moments(trigger, zone, a, b)]
    assert pieces == moments(trigger, zone, start, start + 4 * DAY)


def test_the_bounds_are_open_and_closed() -> None:
    trigger, at = ScheduleTrigger(at="07:00"), parse_instant("2026-06-10T11:00:00Z")
    assert moments(trigger, "America/New_York", at, at + 1) == []
    assert [m.at for m in moments(trigger, "America/New_York", at - 1, at)] == [at]


def test_a_name_is_the_same_in_every_zone_and_so_is_its_month() -> None:
    """A user who changes zones meets it under one message id, also where one zone's month has begun and another's not."""
    trigger, day = ScheduleTrigger(at="07:00"), parse_instant("2026-12-01T00:00:00Z")
    found: dict[str, set[int]] = {}
    for zone in ("Pacific/Auckland", "America/New_York", "Pacific/Honolulu"):
        for moment in moments(trigger, zone, day - DAY, day + DAY):
            found.setdefault(moment.name, set()).add(moment.began_at)
    assert found["2026-12-01"] == {parse_instant("2026-12-01T07:00:00Z")}
    assert all(len(began) == 1 for began in found.values())


def test_days_and_once_and_zone() -> None:
    monday = ScheduleTrigger(at="07:00", days=["mon", "thu"])
    assert _at(monday, "America/New_York", "2026-06-08", days=7) == ["2026-06-08T11:00", "2026-06-11T11:00"]
    instant = ScheduleTrigger(once="2026-12-24T18:00:00-05:00")
    for zone in ZONES:
        assert _at(instant, zone, "2026-12-24", days=3) == ["2026-12-24T23:00"]
    wall = ScheduleTrigger(once="2026-12-24T18:00")
    assert _at(wall, "Asia/Kolkata", "2026-12-24", days=3) == ["2026-12-24T12:30"]
    assert _at(wall, "America/New_York", "2026-12-24", days=3) == ["2026-12-24T23:00"]
    local = frozenset(ZONES)
    assert zones(wall, local) == local
    assert zones(ScheduleTrigger(at="07:00", zone="Europe/Paris"), local) == {"Europe/Paris"}


def test_until_ends_the_same_day_or_the_next() -> None:
    at = parse_instant("2026-03-08T11:00:00Z")
    zone = "America/New_York"
    assert over_at(ScheduleTrigger(at="07:00", until="12:00"), zone, at) == parse_instant("2026-03-08T16:00:00Z")
    assert over_at(ScheduleTrigger(at="07:00", until="06:30"), zone, at) == parse_instant("2026-03-09T10:30:00Z")
    assert over_at(ScheduleTrigger(at="07:00"), zone, at) is None


@pytest.mark.parametrize(
    ("told", "field"),
    [
        ({}, "at"),
        ({"at": "07:00", "cron": "0 7 * * *"}, "at"),
        ({"at": "7:00"}, "at"),
        ({"at": "24:00"}, "at"),
        ({"cron": "0 7 * *"}, "cron"),
        ({"cron": "0 0 7 * * *"}, "cron"),
        ({"cron": "0 0 31 2 *"}, "cron"),
        ({"cron": "*/30 * * * *"}, "cron"),
        ({"cron": "0 7 * * *", "days": ["mon"]}, "days"),
        ({"once": "tomorrow"}, "once"),
        ({"at": "07:00", "zone": "Mars/Olympus"}, "zone"),
        ({"at": "07:00", "relations": []}, "relations"),
        ({"at": "07:00", "until": "noon"}, "until"),
    ],
)
def test_what_is_no_schedule_is_told_by_field(told: dict[str, Any], field: str) -> None:
    assert [name for name, _ in faults(ScheduleTrigger(**told))] == [field]


def test_every_schedule_without_fault_has_moments_in_every_zone_there_is() -> None:
    for trigger in (
        ScheduleTrigger(at="07:00", days=["sun"], until="12:00", context="forecast"),
        ScheduleTrigger(cron="0 9 1 * *"),
        ScheduleTrigger(once="2026-12-24T18:00", zone="UTC"),
    ):
        assert list(faults(trigger)) == []
        for zone in zones(trigger, load().zones):
            found: list[Moment] = moments(trigger, zone, *YEAR)
            assert found and all(YEAR[0] < m.at <= YEAR[1] for m in found)
