"""Which periods a report is of, and whether counts by pause say who was active within a week or a month."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.segmenter.domain.returns import come
from services.segmenter.domain.state import Hot
from services.segmenter.periods import MOST, spanned
from services.segmenter.reports import within
from tests.support.people import DAY, HOUR, T0

NOW = T0 + 40 * DAY + 5 * HOUR
"""2026-02-10T05:00Z"""


@pytest.mark.parametrize(
    ("told", "first", "last", "count"),
    [
        (("2026-01-30", "2026-02-02", ""), "2026-01-30", "2026-02-02", 4),
        (("2026-02-10", "2026-02-10", "day"), "2026-02-10", "2026-02-10", 1),
        (("", "", ""), "2026-01-12", "2026-02-10", 30),
        (("", "2026-01-31", "day"), "2026-01-02", "2026-01-31", 30),
        (("2026-02-08", "2027-01-01", "day"), "2026-02-08", "2026-02-10", 3),
        (("2025-12", "2026-01", "day"), "2025-12-01", "2026-01-31", 62),
        (("1997-01", "1998-06", "month"), "1997-01", "1998-06", 18),
        (("1997-01-31", "1998-06-01", "month"), "1997-01", "1998-06", 18),
        (("", "", "month"), "2025-03", "2026-02", 12),
        (("2026-01", "", "month"), "2026-01", "2026-02", 2),
        (("2024-02-29", "2024-03-01", "day"), "2024-02-29", "2024-03-01", 2),
    ],
)
def test_both_ends_are_in(told: tuple[str, str, str], first: str, last: str, count: int) -> None:
    periods = spanned(*told, NOW)
    names = [periods.name(start) for start in periods.starts]
    assert (names[0], names[-1], len(names)) == (first, last, count)
    assert names == sorted(set(names)) and periods.before() < periods.starts[0] and periods.end > periods.starts[-1]


@pytest.mark.parametrize(
    "told",
    [
        ("yesterday", "", ""), ("2026-02-30", "", ""), ("2026-13", "", "month"), ("", "", "week"), ("2026-1-1", "", ""),
        ("2026-02-02", "2026-02-01", ""), ("2026-02-11", "", "day"), ("2026-03", "", "month"), ("1969-12-31", "", ""),
        ("0001-01-01", "0001-01-02", ""), ("1970-01-01", "", "day"), ("٢٠٢٦-٠١-٠١", "", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(told: tuple[str, str, str]) -> None:
    with pytest.raises(ValueError, match=r"is |are "):
        spanned(*told, NOW)


def test_sums_go_to_their_periods_and_what_lies_behind() -> None:
    periods = spanned("2025-12", "2026-01", "month", NOW)
    december, january = periods.starts
    counts = {december - 1: 1000, december: 1, january - 1: 2, january: 4, january + 30: 8, periods.end: 16}
    assert periods.sums(counts) == [3, 12, 16]
    assert len(spanned("", "", "", NOW).sums({})) == 31 and MOST >= 366


LIVES = st.lists(st.lists(st.integers(20_000, 20_080), min_size=1, max_size=15), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None, database=None)
@given(lives=LIVES, last=st.integers(20_000, 20_085), days=st.sampled_from([1, 7, 30]))
def test_those_active_within_days_are_counted_once(lives: list[list[int]], last: int, days: int) -> None:
    """However often they came, and in whatever order it was told."""
    counts: Counter[tuple[str, str, int]] = Counter()
    kept: list[set[int]] = []
    for life in lives:
        hot, inside = Hot("reach", 0, "new", 0, 0, 0), set[int]()
        for day in life:
            inside |= {day} if day > max(inside, default=day) - 64 else set()
            for on, kind, pause, by in come(hot, day):
                counts[kind, pause, on] += by
        kept.append(inside)
    found: dict[tuple[str, str], dict[int, int]] = {}
    for (kind, pause, on), n in counts.items():
        found.setdefault((kind, pause), {})[on] = n
    assert within(found, last, days) == sum(any(last - days < day <= last for day in inside) for inside in kept)
