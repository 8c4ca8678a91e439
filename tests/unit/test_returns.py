"""Whether the counts of days and months are those of the set of days, in whatever order these were told."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.segmenter.domain import returns
from services.segmenter.domain.returns import come, first_day, month_of
from services.segmenter.domain.state import Daily, Hot, decode_hot, encode_hot

DAY_0 = 20_454
"""2026-01-01"""


def _hot() -> Hot:
    return Hot("reach", 0, "new", 0, 0, 0)


def _told(days: list[int]) -> tuple[Hot, Counter[tuple[str, int, str]]]:
    hot = _hot()
    counts: Counter[tuple[str, int, str]] = Counter()
    for number, day in enumerate(days):
        moved: list[Daily] = come(hot, day)
        for on, kind, pause, by in moved:
            counts[kind, on, pause] += by
        if number % 7 == 6:
            hot = decode_hot(encode_hot(hot))
    return hot, +counts


def _pauses(units: set[int], most: int) -> list[tuple[int, str]]:
    several = sorted(units)
    return [
        (unit, "first" if number == 0 else str(min(most, unit - several[number - 1])))
        for number, unit in enumerate(several)
    ]


FAR = st.lists(st.integers(DAY_0 - 4000, DAY_0), min_size=1, max_size=40)
NEAR = st.lists(st.integers(DAY_0, DAY_0 + 200), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None, database=None)
@given(st.one_of(NEAR, FAR, st.builds(lambda a, b: a + b, FAR, NEAR)))
@example([DAY_0, DAY_0 + 95, DAY_0 + 63, DAY_0 + 32, DAY_0 + 31])
@example([DAY_0 + 63, DAY_0, DAY_0 + 1, DAY_0 + 64, DAY_0 + 2])
def test_the_counts_are_those_of_the_set_of_days(days: list[int]) -> None:
    """Each day once, by the pause before it; of what lies too far back when it is told nothing is counted, ever."""
    inside: set[int] = set()
    months: set[int] = set()
    for day in days:
        if day > max(inside, default=day) - 64:
            inside.add(day)
        if month_of(day) > max(months, default=month_of(day)) - 62:
            months.add(month_of(day))
    hot, counts = _told(days)
    assert (hot.active_days, hot.last_day) == (len(inside), max(days))
    assert {hot.last_day - n for n in range(64) if hot.bitmap >> n & 1} == {d for d in inside if hot.last_day - d < 64}
    assert max(hot.bitmap, hot.months) < 2**64 and hot.older_days < 2**32
    expected = Counter(("active", day, pause) for day, pause in _pauses(inside, 31))
    expected += Counter(("month", first_day(month), pause) for month, pause in _pauses(months, 2))
    assert counts == expected


@settings(max_examples=60, deadline=None, database=None)
@given(days=st.lists(st.integers(DAY_0, DAY_0 + 63), min_size=1, max_size=40), data=st.data())
def test_within_two_months_the_order_does_not_matter(days: list[int], data: st.DataObject) -> None:
    assert _told(days)[1] == _told(data.draw(st.permutations(days)))[1]


@pytest.mark.parametrize(
    ("day", "month", "first"),
    [(0, "1970-01", 0), (DAY_0, "2026-01", DAY_0), (DAY_0 - 1, "2025-12", DAY_0 - 31), (19_782, "2024-02", 19_754)],
)
def test_a_day_lies_in_its_month(day: int, month: str, first: int) -> None:
    year, number = divmod(month_of(day), 12)
    assert (f"{year}-{number + 1:02}", first_day(month_of(day))) == (month, first)


def test_pauses_have_a_name_each() -> None:
    assert len(set(returns.NAMES)) == returns.LONG + 1 == 32
