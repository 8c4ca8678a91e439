"""Since when an open transaction holds records back."""

from __future__ import annotations

import pytest

from shared.kafka import held as module
from shared.kafka.held import Held, Reach, held


@pytest.mark.parametrize(
    ("reach", "is_held"),
    [
        (Reach(5, 5, 9), True),
        (Reach(0, 0, 1), True),
        (Reach(4, 5, 9), False),  # not read up to there yet
        (Reach(9, 9, 9), False),
        (Reach(5, 9, 9), False),
        (Reach(5, None, 9), False),  # nothing was fetched yet
        (Reach(5, -1, 9), False),  # a broker that knows no transactions
        (Reach(5, 5, None), False),
    ],
)
def test_only_what_the_broker_has_and_does_not_give_is_held(reach: Reach, is_held: bool) -> None:
    assert held(reach) is is_held


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    at = [1000.0]
    monkeypatch.setattr(module, "monotonic", lambda: at[0])
    return at


def test_it_counts_from_when_the_longest_hold_began(clock: list[float]) -> None:
    one = Held("t")
    assert one.seconds() == 0
    one.note({0: Reach(5, 5, 9), 1: Reach(3, 3, 3)})
    clock[0] += 10
    one.note({0: Reach(5, 5, 12), 1: Reach(3, 3, 4)})
    clock[0] += 5
    assert one.seconds() == 15
    one.note({0: Reach(12, 12, 12), 1: Reach(3, 3, 4)})
    assert one.seconds() == 5
    one.note({0: Reach(12, 12, 12), 1: Reach(4, 4, 4)})
    assert one.seconds() == 0


def test_transactions_that_follow_each_other_are_no_hold(clock: list[float]) -> None:
    """A producer whose transactions are short holds something back at every look, and nothing for long."""
    one = Held("t")
    for offset in range(100):
        one.note({0: Reach(offset, offset, offset + 2)})
        clock[0] += 1
        assert one.seconds() == 1


def test_what_was_dealt_out_anew_is_not_held_here(clock: list[float]) -> None:
    one = Held("t")
    one.note({0: Reach(5, 5, 9)})
    clock[0] += 100
    one.forget()
    assert one.seconds() == 0


def test_it_is_said_once_and_where(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    one = Held("raw")
    for _ in range(5):
        one.note({3: Reach(5, 5, 9), 4: Reach(1, 1, 1)})
        clock[0] += 20
    (said,) = caplog.records
    assert said.fields == {"topic": "raw", "partition": 3, "offset": 5}  # type: ignore[attr-defined]
