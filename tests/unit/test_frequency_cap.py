"""However pushes are planned, delayed, refused and tapped: never more than the cap in any window, as they went out."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notifier.domain import gates
from services.notifier.domain.frequency_cap import (
    PENDING,
    Past,
    content_key,
    horizon_days,
    last_at,
    repeats,
    unanswered,
    window_start,
)
from services.notifier.domain.gates import Reason
from shared.contracts.rules import Campaign, Cap, Limits, StageTrigger

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
NEW_YORK = ZoneInfo("America/New_York")
T0 = int(datetime(2026, 3, 7, 12, tzinfo=UTC).timestamp() * 1000)
"""The day before the clocks go forward in the United States."""


def campaign(category: str = "lifecycle", **how: object) -> Campaign:
    return Campaign("c", "C", StageTrigger(["x"]), {}, category=category, **how)  # type: ignore[arg-type]


def past(at: int, category: str = "lifecycle", key: str = "k", opened: bool = False, name: str = "m") -> Past:
    return Past(name, at, category, key, opened)


CAPS = st.one_of(
    st.builds(Cap, st.integers(1, 4), st.just("rolling"), st.integers(1, 60), st.sampled_from(["", "a", "b"])),
    st.builds(Cap, st.integers(1, 4), st.sampled_from(["day", "week", "month"]), category=st.sampled_from(["", "a"])),
)
ZONES = st.sampled_from([NEW_YORK, ZoneInfo("Pacific/Honolulu"), ZoneInfo("America/St_Johns"), ZoneInfo("UTC")])


@dataclass
class Life:
    """A user's pushes: planned, then on their way for a while (some are never sent), then attempted."""

    limits: Limits
    zone: ZoneInfo
    now: int = T0
    pushes: list[Past] = field(default_factory=list)

    def plan(self, category: str) -> None:
        c = campaign(category)
        checks = [gates.caps(self.limits, c, self.pushes, self.zone, self.now)]
        if self.limits.gap_minutes:
            checks.append(gates.gap(self.limits, self.pushes, self.now))
        if all(check.passed for check in checks):
            self.pushes.append(Past(str(len(self.pushes)), PENDING, category, "k"))

    def goes_out(self, which: int, sent: bool) -> None:
        """One that is on its way is attempted now, or given up without an attempt."""
        waiting = [n for n, one in enumerate(self.pushes) if one.at == PENDING]
        if waiting:
            n = waiting[which % len(waiting)]
            if sent:
                self.pushes[n] = msgspec.structs.replace(self.pushes[n], at=self.now)
            else:
                del self.pushes[n]

    def attempts(self, cap: Cap) -> list[int]:
        return sorted(p.at for p in self.pushes if p.at != PENDING and (not cap.category or p.category == cap.category))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([1, MINUTE, 50 * MINUTE, 5 * HOUR, DAY, 6 * DAY])),
        st.tuples(st.just("plan"), st.sampled_from(["a", "b"])),
        st.tuples(st.just("out"), st.integers(0, 9)),
        st.tuples(st.just("lost"), st.integers(0, 9)),
    ),
    max_size=120,
)


@given(st.lists(CAPS, min_size=1, max_size=3), st.sampled_from([0, 1, 90]), ZONES, STEPS)
def test_never_more_attempts_than_the_cap_in_any_window(
    caps: list[Cap], gap: int, zone: ZoneInfo, steps: list[tuple[str, object]]
) -> None:
    """Whatever waits between plan and attempt, for however long, and in whatever order it goes out."""
    life = Life(Limits(caps, gap), zone)
    for what, value in steps:
        match what, value:
            case "wait", int():
                life.now += value
            case "plan", str():
                life.plan(value)
            case "out", int():
                life.goes_out(value, sent=True)
            case "lost", int():
                life.goes_out(value, sent=False)
    for cap in caps:
        went = life.attempts(cap)
        for start in went:
            if cap.window == "rolling":
                inside = [at for at in went if start <= at < start + cap.hours * HOUR]
            else:
                inside = [at for at in went if period(cap, zone, at) == period(cap, zone, start)]
            assert len(inside) <= cap.most, (cap, inside)
    went = life.attempts(Cap(1))
    assert all(later - earlier >= gap * MINUTE for earlier, later in pairwise(went))


def period(cap: Cap, zone: ZoneInfo, at: int) -> tuple[int, ...]:
    local = datetime.fromtimestamp(at / 1000, UTC).astimezone(zone)
    match cap.window:
        case "day":
            return (local.year, local.month, local.day)
        case "week":
            return tuple(local.isocalendar()[:2])
        case _:
            return (local.year, local.month)


@pytest.mark.parametrize(
    "cap",
    [Cap(1, hours=1), Cap(1, hours=47), Cap(1, hours=48), Cap(1, "day"), Cap(1, "week"), Cap(1, "month")],
    ids=str,
)
def test_no_window_reaches_farther_back_than_is_read_from_the_database(cap: Cap) -> None:
    """At any hour of a year, also in a month of 31 days that is an hour longer than that."""
    remembered = horizon_days(Limits([cap]), []) * DAY
    for hour in range(366 * 24):
        now = T0 + hour * HOUR + HOUR - 1
        assert now - remembered < window_start(cap, NEW_YORK, now) <= now


def test_a_room_for_one_is_room_for_one() -> None:
    limits = Limits([Cap(2, hours=24), Cap(1, "day", category="lifecycle")])
    for before, room in (([], True), ([past(T0 - 23 * HOUR)], True), ([past(T0 - HOUR)], False)):
        assert gates.caps(limits, campaign(), before, NEW_YORK, T0).passed is room
    check = gates.caps(limits, campaign("news"), [past(T0 - HOUR)], NEW_YORK, T0)
    assert (check.passed, check.reason) == (True, Reason.CAP)
    assert check.values["caps"] == [{"most": 2, "used": 1, "window": "24 hours", "category": None}]
    assert not gates.caps(limits, campaign("news"), [past(T0 - HOUR), past(PENDING)], NEW_YORK, T0).passed


@pytest.mark.parametrize(
    ("cap", "start"),
    [
        (Cap(1, hours=2), "2026-03-08T06:00:00.001+00:00"),
        (Cap(1, "day"), "2026-03-08T00:00:00-05:00"),
        (Cap(1, "week"), "2026-03-02T00:00:00-05:00"),
        (Cap(1, "month"), "2026-03-01T00:00:00-05:00"),
    ],
)
def test_calendar_windows_begin_at_midnight_where_the_user_is(cap: Cap, start: str) -> None:
    """At four in the morning of the Sunday on which an hour is missing."""
    now = round(datetime.fromisoformat("2026-03-08T04:00:00-04:00").timestamp() * 1000)
    assert window_start(cap, NEW_YORK, now) == round(datetime.fromisoformat(start).timestamp() * 1000)


@pytest.mark.parametrize(("ago", "passed"), [(59 * MINUTE, False), (60 * MINUTE, True)])
def test_a_gap_is_over_when_its_minutes_are(ago: int, passed: bool) -> None:
    limits = Limits(gap_minutes=60)
    assert gates.gap(limits, [], T0).passed
    assert gates.gap(limits, [past(T0 - DAY), past(T0 - ago)], T0).passed is passed
    assert not gates.gap(limits, [past(PENDING)], T0).passed
    assert last_at([past(PENDING)], T0) == T0


def test_an_offer_is_the_same_in_whatever_words_and_a_text_is_not() -> None:
    one, other = campaign(offer="free-shipping", no_repeat_days=30), campaign(offer="ten-percent", no_repeat_days=30)
    assert content_key(one, "A", "b") == content_key(one, "C", "d") != content_key(other, "A", "b")
    assert content_key(campaign(), "A", "b") != content_key(campaign(), "A", "c")
    assert content_key(campaign(), "offer", "x") != content_key(campaign(offer="x"), "offer", "x")
    before = [past(T0 - 29 * DAY, key=content_key(one, "", ""))]
    assert repeats(one, content_key(one, "A", "b"), before, T0)
    assert not repeats(one, content_key(one, "A", "b"), before, T0 + DAY)
    assert not repeats(other, content_key(other, "A", "b"), before, T0)
    assert not repeats(campaign(), "k", [past(T0)], T0), "without no_repeat_days anything may be repeated"


def test_a_tap_begins_the_count_of_unanswered_pushes_anew() -> None:
    before = [past(T0 - n * DAY) for n in range(1, 6)]
    assert unanswered(before, T0) == 5
    assert unanswered([*before, past(T0 - 400 * DAY), past(PENDING)], T0) == 6
    before[2] = past(T0 - 3 * DAY, opened=True)
    assert unanswered(before, T0) == 2
    assert gates.sunset(Limits(sunset_pushes=3), before, T0).passed
    assert not gates.sunset(Limits(sunset_pushes=2), before, T0).passed


def test_the_horizon_is_what_the_farthest_look_back_takes() -> None:
    assert horizon_days(Limits(), [campaign()]) == 0
    assert horizon_days(Limits([Cap(1, hours=50)]), []) == 3
    assert horizon_days(Limits([Cap(1, "month")], gap_minutes=60), [campaign(no_repeat_days=90)]) == 90
    assert horizon_days(Limits(sunset_pushes=3), []) == 365
