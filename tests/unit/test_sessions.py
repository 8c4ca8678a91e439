"""Which visit an activity counts into, also when it comes late."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.segmenter.domain.sessions import enter, mark_day
from services.segmenter.domain.state import Hot

GAP = 30


def _hot() -> Hot:
    return Hot("reach", 0, "new", 0, 0, 0)


@pytest.mark.parametrize(
    ("moments", "sessions", "span"),
    [
        ([100], 1, (100, 100)),
        ([100, 130], 1, (100, 130)),
        ([100, 131], 2, (131, 131)),
        ([100, 130, 160, 190], 1, (100, 190)),
        ([100, 75], 1, (75, 100)),
        ([100, 70], 1, (70, 100)),
        ([100, 69], 1, (100, 100)),
        ([100, 200, 100], 2, (200, 200)),
    ],
    ids=lambda v: str(v).replace(" ", ""),
)
def test_a_gap_ends_a_session(moments: list[int], sessions: int, span: tuple[int, int]) -> None:
    hot = _hot()
    for at in moments:
        enter(hot, at, 1, GAP)
    assert hot.sessions == sessions
    assert (hot.session_start_at, hot.session_last_at) == span
    assert hot.screens == len(moments)


def test_depth_is_counted_anew_in_each_session() -> None:
    hot = _hot()
    for at, screens in ((100, 1), (110, 1), (115, 0), (200, 1)):
        enter(hot, at, screens, GAP)
    assert (hot.session_screens, hot.screens) == (1, 3)


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.integers(19_000, 19_200), min_size=1, max_size=60))
def test_active_days_are_a_set_within_64_days(days: list[int]) -> None:
    """Days of the last 64 count once each, in whatever order their uploads come."""
    hot, counted = _hot(), 0
    seen: set[int] = set()
    latest = -1
    for day in days:
        mark_day(hot, day)
        known = day in seen or (latest >= 0 and latest - day >= 64)
        counted += 0 if known else 1
        latest = max(latest, day)
        seen = {d for d in seen | {day} if latest - d < 64}
    assert hot.active_days == counted
    assert hot.last_day == max(days)
    assert {hot.last_day - n for n in range(64) if hot.bitmap >> n & 1} == seen
    assert hot.bitmap < 2**64
