"""The judge of the simulated day: it must see every broken promise, and nothing else."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest

from services.packs import load_pack
from shared.contracts.rules import Cap, Limits, QuietHours
from tests.support.day import Shown, violations

NEW_YORK = ZoneInfo("America/New_York")
LAG = 60_000
LIMITS = Limits(
    [Cap(2, hours=24, category="lifecycle"), Cap(3, window="day")], 30, QuietHours("22:00", "07:00", "America/New_York")
)
RULES = msgspec.structs.replace(load_pack("weather"), limits=LIMITS)
QUIET = msgspec.structs.replace(RULES, limits=Limits(quiet_hours=LIMITS.quiet_hours))


def shown(*pushes: str) -> list[Shown]:
    """Each as "DAYThh:mm CAMPAIGN", the day one of March 2027, by New York's clocks."""
    found = []
    for number, push in enumerate(pushes):
        wall, campaign = push.split()
        at = datetime.fromisoformat(f"2027-03-{wall}").replace(tzinfo=NEW_YORK)
        found.append(Shown(round(at.timestamp() * 1000), "u1", campaign, f"m{number}"))
    return found


@pytest.mark.parametrize(
    "pushes",
    [
        ("13T07:00 win_back", "13T21:59 thank_you"),
        ("13T22:00 win_back",),  # let go a moment before
        ("13T23:00 severe_alert", "13T23:00 severe_alert", "14T03:30 severe_alert"),
        ("13T12:00 win_back", "13T12:30 thank_you"),
        ("12T12:00 win_back", "12T13:00 thank_you", "13T12:00 searched_not_added"),
        ("12T20:00 morning_forecast", "12T21:00 morning_forecast", "13T07:00 morning_forecast",
         "13T08:00 morning_forecast", "13T09:00 morning_forecast"),
    ],
)  # fmt: skip
def test_what_was_promised_is_no_violation(pushes: tuple[str, ...]) -> None:
    assert not list(violations(shown(*pushes), {"u1": NEW_YORK}, RULES, LAG))


@pytest.mark.parametrize(
    ("said", "pushes"),
    [
        ("in quiet hours", ("13T06:58 win_back",)),
        ("in quiet hours", ("13T22:02 win_back",)),
        ("in quiet hours", ("14T06:58 win_back",)),  # the clocks have gone forward
        ("within", ("13T12:00 win_back", "13T12:28 thank_you")),
        ("more than Cap(most=2", ("12T12:00 win_back", "12T13:00 thank_you", "13T11:58 searched_not_added")),
        ("more than Cap(most=3", tuple(f"13T{hour}:00 morning_forecast" for hour in (10, 12, 14, 16))),
    ],
)
def test_a_broken_promise_is_seen(said: str, pushes: tuple[str, ...]) -> None:
    found = list(violations(shown(*pushes), {"u1": NEW_YORK}, RULES, LAG))
    assert len(found) == 1
    assert said in found[0]


def test_a_message_that_came_twice_is_seen() -> None:
    twice = [push._replace(message_id="m0") for push in shown("13T12:00 win_back", "13T14:00 win_back")]
    assert list(violations(twice, {"u1": NEW_YORK}, QUIET, LAG)) == ["message m0 came 2 times"]
