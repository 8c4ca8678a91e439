"""Nobody is woken: what the clock on the user's wall says, over every change of it, in all zones of the US."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notifier.domain.quiet_hours import clock_time, quiet_until, zone_named
from shared.contracts.rules import QuietHours
from shared.gazetteer import load

NIGHT = QuietHours("22:00", "07:00")
US = sorted({place.timezone for city in load().by_same("000000") if (place := load().get(city)) is not None})
ZONES = [*US, "America/Havana", "Asia/Kathmandu", "Australia/Lord_Howe", "Europe/Paris"]
HOUR, DAY = 3_600_000, 86_400_000

INSTANTS = st.integers(1_577_836_800_000, 2_145_830_400_000)
"""2020 to 2037, as far as the tables of the zones go."""
TIMES = st.tuples(st.integers(0, 23), st.integers(0, 59)).map(lambda t: f"{t[0]:02}:{t[1]:02}")
HOURS = st.tuples(TIMES, TIMES).filter(lambda t: t[0] != t[1]).map(lambda t: QuietHours(*t))


def wall(zone: str, ms: int) -> str:
    """What the clock on the wall shows."""
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone(ZoneInfo(zone)).strftime("%H:%M")


@cache
def minutes(hours: QuietHours) -> frozenset[str]:
    """Every minute of the quiet hours, listed one by one: none of the code's own comparisons."""
    found, minute = [], datetime(2026, 1, 1, tzinfo=UTC).replace(hour=int(hours.from_[:2]), minute=int(hours.from_[3:]))
    while (name := minute.strftime("%H:%M")) != hours.to:
        found.append(name)
        minute += timedelta(minutes=1)
    return frozenset(found)


def quiet(hours: QuietHours, shown: str) -> bool:
    return shown in minutes(hours)


@cache
def changes(zone: str) -> list[int]:
    """Instants in 2025 and 2026 at which the zone's offset changes, to the hour."""
    found, known = [], ZoneInfo(zone)
    at = datetime(2025, 1, 1, tzinfo=UTC)
    while at.year < 2027:
        later = at + timedelta(hours=1)
        if at.astimezone(known).utcoffset() != later.astimezone(known).utcoffset():
            found.append(int(later.timestamp() * 1000))
        at = later
    return found


def test_the_zones_are_those_of_all_cities() -> None:
    assert {"America/New_York", "America/Phoenix", "Pacific/Honolulu", "America/Anchorage"} <= set(US)
    assert set(ZONES) <= available_timezones()


@given(HOURS, st.sampled_from(ZONES), INSTANTS)
def test_what_is_sent_at_once_or_held_is_never_sent_in_quiet_hours(hours: QuietHours, zone: str, now: int) -> None:
    until = quiet_until(hours, ZoneInfo(zone), now)
    assert (until is not None) is quiet(hours, wall(zone, now))
    if until is not None:
        assert not quiet(hours, wall(zone, until))
        assert now < until <= now + DAY + 2 * HOUR


@pytest.mark.parametrize("zone", ["America/New_York", "America/Anchorage", "America/Havana", "Australia/Lord_Howe"])
@pytest.mark.parametrize("hours", [NIGHT, QuietHours("01:30", "02:30"), QuietHours("02:10", "01:50")], ids=str)
def test_around_each_change_of_the_clock_the_wall_decides(zone: str, hours: QuietHours) -> None:
    """Every ten minutes of a day and a half around it. Nobody waits much longer than until the first moment that is
    not quiet: an hour that is shown twice, or not at all, may come on top."""
    for change in changes(zone):
        for now in range(change - 18 * HOUR, change + 18 * HOUR, HOUR // 6):
            until = quiet_until(hours, ZoneInfo(zone), now)
            assert (until is not None) is quiet(hours, wall(zone, now)), (wall(zone, now), until)
            if until is not None:
                assert not quiet(hours, wall(zone, until)), (wall(zone, now), wall(zone, until))
                loud = (t for t in range(now, until, HOUR // 6) if not quiet(hours, wall(zone, t)))
                assert until - next(loud, until) <= 2 * HOUR


@pytest.mark.parametrize(
    ("at", "until"),
    [
        ("2026-06-10T21:59:59-04:00", None),
        ("2026-06-10T22:00:00-04:00", "2026-06-11T07:00:00-04:00"),
        ("2026-06-11T06:59:59.999-04:00", "2026-06-11T07:00:00-04:00"),
        ("2026-06-11T07:00:00-04:00", None),
        ("2026-03-07T23:00:00-05:00", "2026-03-08T07:00:00-04:00"),
        ("2026-10-31T23:00:00-04:00", "2026-11-01T07:00:00-05:00"),
    ],
)
def test_a_night_in_new_york(at: str, until: str | None) -> None:
    now = round(datetime.fromisoformat(at).timestamp() * 1000)
    found = quiet_until(NIGHT, ZoneInfo("America/New_York"), now)
    assert found == (until and round(datetime.fromisoformat(until).timestamp() * 1000))


def test_without_quiet_hours_no_hour_is_quiet() -> None:
    assert quiet_until(QuietHours(), ZoneInfo("UTC"), 0) is None


@pytest.mark.parametrize("name", [None, "", "Nowhere/City", "../etc/passwd", "a\0b", "America", "x" * 5000, "\ud800"])
def test_what_is_no_zone_counts_as_the_one_the_pack_names(name: str | None) -> None:
    assert zone_named(name, "America/Denver").key == "America/Denver"
    assert zone_named(name, "nor this").key == "UTC"


def test_a_zone_the_phone_names_is_its_own() -> None:
    assert zone_named("America/Boise", "America/Denver").key == "America/Boise"


@pytest.mark.parametrize("text", ["", "7:00", "24:00", "07:60", "07.00", "noon", "07:000"])
def test_a_time_of_day_has_four_digits(text: str) -> None:
    with pytest.raises(ValueError, match=r"time of day|must be in|invalid literal"):
        clock_time(text)
