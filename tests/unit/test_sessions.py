"""Which visit an activity counts into, also when it comes late."""

from __future__ import annotations

import pytest

from services.segmenter.domain.sessions import enter
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
