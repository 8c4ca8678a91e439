"""What an activity makes of each pulse, and which span runs out next in each."""

from __future__ import annotations

import pytest

from services.segmenter.domain.activity import BY_ACTING, BY_TIME, after_acting, next_change
from services.segmenter.domain.compiled import Compiled
from services.segmenter.domain.state import Hot
from shared.contracts.rules import ActivityName
from tests.support.people import DAY, T0, weather, with_days

RULES = Compiled(1, weather())
NAMES = set(ActivityName.__args__)  # type: ignore[attr-defined]


def _hot(activity: str, *, since: int = T0, last: int = T0) -> Hot:
    return Hot("reach", T0, activity, since, T0, T0, T0, last)


def test_the_tables_speak_of_every_pulse() -> None:
    """A pulse without a row would be a KeyError in the middle of the night."""
    assert set(BY_ACTING) == set(BY_TIME) == NAMES
    assert set(BY_ACTING.values()) | {to for rows in BY_TIME.values() for _, to in rows} <= NAMES


@pytest.mark.parametrize(
    ("activity", "since_days", "last_days", "expected"),
    [
        ("new", 0, 0, (7, "active")),
        ("new", 0, 3, (7, "active")),
        ("active", 7, 0, (14, "at_risk")),
        ("active", 7, 9, (23, "at_risk")),
        ("at_risk", 14, 0, (30, "inactive")),
        ("inactive", 30, 0, (90, "lapsed")),
        ("lapsed", 90, 0, None),
        ("reactivated", 40, 40, (54, "active")),
        ("uninstalled", 1, 0, None),
    ],
)
def test_what_time_alone_will_do(
    activity: str, since_days: int, last_days: int, expected: tuple[int, str] | None
) -> None:
    found = next_change(_hot(activity, since=T0 + since_days * DAY, last=T0 + last_days * DAY), RULES)
    assert found == (None if expected is None else (T0 + expected[0] * DAY, expected[1]))


def test_who_never_did_anything_is_not_aged() -> None:
    assert next_change(_hot("inactive", last=-1), RULES) is None


def test_shorter_spans_make_nothing_happen_before_its_value_was_entered() -> None:
    """Under new rules the twelve days of `at_risk` are long over: it ends the moment it began, not before."""
    rules = Compiled(2, with_days(new=1, at_risk=2, inactive=3, lapsed=4, reactivated=1))
    assert next_change(_hot("at_risk", since=T0 + 14 * DAY, last=T0), rules) == (T0 + 14 * DAY, "inactive")


@pytest.mark.parametrize(
    ("activity", "since_days", "last_days", "now_days", "expected"),
    [
        ("new", 0, 1, 1, "new"),
        ("active", 7, 8, 8, "active"),
        ("at_risk", 14, 15, 15, "active"),
        ("at_risk", 14, 5, 19, "at_risk"),
        ("inactive", 30, 40, 40, "reactivated"),
        ("inactive", 30, 10, 40, "inactive"),
        ("inactive", 30, 11, 40, "reactivated"),
        ("lapsed", 90, 95, 95, "reactivated"),
        ("lapsed", 90, 5, 95, "lapsed"),
        ("lapsed", 90, 6, 95, "inactive"),
        ("lapsed", 90, 65, 95, "inactive"),
        ("lapsed", 90, 66, 95, "reactivated"),
        ("reactivated", 40, 41, 41, "reactivated"),
        ("uninstalled", 10, 10, 11, "uninstalled"),
        ("uninstalled", 10, 11, 11, "reactivated"),
    ],
)
def test_what_an_activity_does(activity: str, since_days: int, last_days: int, now_days: int, expected: str) -> None:
    hot = _hot(activity, since=T0 + since_days * DAY, last=T0 + last_days * DAY)
    assert after_acting(hot, False, T0 + now_days * DAY, RULES) == expected
    assert after_acting(hot, True, T0 + now_days * DAY, RULES) == "new"
