"""When a numbered record is applied, dropped as a repeat, or shows a gap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.kafka.chain import judge


@pytest.mark.parametrize(
    ("last", "prev", "number", "link"),
    [
        (-1, -1, 0, "apply"),
        (-1, -1, 7, "apply"),  # the log's head was gone before anyone read it
        (5, 5, 6, "apply"),
        (5, 5, 9, "apply"),  # aborted transactions leave holes
        (5, 3, 6, "apply"),  # decided again from further back
        (5, 4, 5, "repeat"),
        (5, 2, 3, "repeat"),
        (5, 6, 7, "gap"),
        (-1, 0, 1, "gap"),
    ],
)
def test_judge(last: int, prev: int, number: int, link: str) -> None:
    assert judge(last, prev, number) == link


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.data())
def test_whatever_writers_repeat_every_number_is_applied_once(starts: list[int], data: st.DataObject) -> None:
    """Several writers resume where they please and number from there; a reader applies 0, 1, 2… once each, in order,
    and never over a hole."""
    log: list[tuple[int, int]] = []
    for start in starts:
        length = data.draw(st.integers(1, 10))
        log += [(n - 1, n) for n in range(start, start + length)]
    last, applied = -1, []
    for prev, number in log:
        if judge(last, prev, number) == "apply":
            applied.append(number)
            last = number
    assert applied == list(range(len(applied)))
