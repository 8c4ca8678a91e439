"""Is a pack's author told what is wrong with caps, quiet hours and repeats, by file and line?"""

from __future__ import annotations

from pathlib import Path

import pytest

from services.packs import load_pack
from shared.contracts.rules import Cap, Limits, QuietHours, decode_rules, encode_rules
from tests.unit.test_packs import CAMPAIGN, GOOD, faults, write

LIMITS = """\
limits:
  caps:
    - {most: 3, hours: 24}
    - {most: 1, window: week, category: lifecycle}
  gap_minutes: 60
  quiet_hours:
    from: 22:00
    to: 07:00
    zone: America/New_York
  sunset_pushes: 10
"""
FIRST = GOOD.count("\n") + 1


def test_limits_are_read_and_survive_json(tmp_path: Path) -> None:
    """A time of day needs no quotes: YAML would otherwise make a number of base 60 of it."""
    rules = load_pack(write(tmp_path / "tiny", GOOD + LIMITS, hello=CAMPAIGN))
    caps = [Cap(3, "rolling", 24), Cap(1, "week", category="lifecycle")]
    assert rules.limits == Limits(caps, 60, QuietHours("22:00", "07:00", "America/New_York"), 10)
    assert decode_rules(encode_rules(rules)) == rules


def test_a_pack_that_says_nothing_limits_nothing(tmp_path: Path) -> None:
    assert load_pack(write(tmp_path / "tiny", hello=CAMPAIGN)).limits == Limits()


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("{most: 3, hours: 24}", "{most: 0, hours: 24}", 2, "limits.caps[0].most: expected 1 to 1000"),
        ("{most: 3, hours: 24}", "{most: 3}", 2, "a rolling window takes 1 to 2160 hours"),
        ("{most: 3, hours: 24}", "{hours: 24}", 2, "most is missing"),
        ("window: week", "window: week, hours: 3", 3, "a calendar week has its own length"),
        ("window: week", "window: year", 3, "expected one of rolling, day, week, month"),
        ("category: lifecycle", "category: lifecicle", 3, "expected one of lifecycle, not 'lifecicle'"),
        ("gap_minutes: 60", "gap_minutes: -1", 4, "limits.gap_minutes: expected 0 to 43200"),
        ("gap_minutes: 60", "gap_minuets: 60", 4, "there is no such field; expected caps"),
        ("from: 22:00", "from: 25:00", 6, "limits.quiet_hours.from: expected a time of day"),
        ("    from: 22:00\n", "", 5, "limits.quiet_hours.from: expected a time of day"),
        ("to: 07:00", "to: 7", 7, "limits.quiet_hours.to: Expected `str`"),
        ("to: 07:00", "to: 22:00", 7, "expected an end that is not their beginning"),
        ("America/New_York", "America/Gotham", 8, "expected a time zone such as"),
        ("sunset_pushes: 10", "sunset_pushes: 1001", 9, "limits.sunset_pushes: expected 0 to 1000"),
    ],
)
def test_a_fault_of_the_limits_names_its_line(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    assert old in LIMITS
    found = faults(write(tmp_path / "tiny", GOOD + LIMITS.replace(old, new), hello=CAMPAIGN))
    assert [(file, at, says in message) for file, at, message in found] == [("pack.yaml", FIRST + line, True)], found


@pytest.mark.parametrize(
    ("new", "line", "says"),
    [
        ("title: Hello\nno_repeat_days: 400", 3, "no_repeat_days must be 0 to 365"),
        ("title: Hello\nsafety: true\nno_repeat_days: 4", 4, "a safety campaign may always repeat itself"),
    ],
)
def test_a_fault_of_a_campaigns_repeats_names_its_line(tmp_path: Path, new: str, line: int, says: str) -> None:
    found = faults(write(tmp_path / "tiny", hello=CAMPAIGN.replace("title: Hello", new)))
    assert [(file, at, says in message) for file, at, message in found] == [("hello.yaml", line, True)], found
