"""That the record which makes the code fail is found and set aside, and no other one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.segmenter.domain.standin import NOT_DECIDED, NOT_KEPT, instead
from shared.contracts.events import Decision, Moved, Rejected, TimeRecord
from shared.kafka.shard_consumer import Polled
from shared.kafka.suspects import Suspects, batches
from tests.support.people import BOSTON, T0, event


class At(NamedTuple):
    offset: int


class Worker:
    """Reads two shards from where it committed, as the services do; what it applied, in what pieces."""

    def __init__(self, records: int, most: int = 100) -> None:
        self.suspects = Suspects()
        self.positions = dict.fromkeys((0, 1), 0)
        self.pieces: list[int] = []
        self.applied: list[tuple[int, str]] = []
        self.failures = 0
        self._records, self._most = records, most

    def poll(self) -> Polled:
        found = {s: [At(n) for n in range(at, self._records)][: self._most] for s, at in self.positions.items()}
        records: Any = {s: several for s, several in found.items() if several}
        return Polled(records, {s: several[-1].offset + 1 for s, several in records.items()})

    def round(self, apply: Callable[[int, int, str], None], before: Callable[[], None] = lambda: None) -> None:
        polled = self.poll()
        try:
            for piece in self.suspects.pieces(polled):
                before()
                self.suspects.trying(piece)
                said = {shard: ["" for _ in several] for shard, several in piece.records.items()}
                self.suspects.replace(piece, said, lambda was: was + "!")
                both = [(s, r.offset, w) for s, rs in piece.records.items() for r, w in zip(rs, said[s], strict=True)]
                for shard, offset, what in both:
                    apply(shard, offset, what)
                self.applied += [(1000 * shard + offset, what) for shard, offset, what in both]
                self.pieces.append(len(both))
                self.positions |= piece.positions
        except ArithmeticError:
            self.suspects.release()
            self.failures += 1

    def run(self, apply: Callable[[int, int, str], None], rounds: int = 100) -> None:
        for _ in range(rounds):
            if all(at == self._records for at in self.positions.values()):
                return
            self.round(lambda *a: self._told(apply, *a))
        raise AssertionError("it does not get on")

    def _told(self, apply: Callable[[int, int, str], None], *a: Any) -> None:
        try:
            apply(*a)
        except ArithmeticError:
            self.suspects.failed()
            raise


def _fails(bad: dict[int, int]) -> Callable[[int, int, str], None]:
    """`bad`: how often a record has to be set aside before it no longer fails."""

    def apply(shard: int, offset: int, what: str) -> None:
        if len(what) < bad.get(1000 * shard + offset, 0):
            raise ArithmeticError

    return apply


def test_what_never_fails_is_applied_poll_by_poll() -> None:
    worker = Worker(7, most=3)
    worker.run(_fails({}))
    assert worker.pieces == [6, 6, 2]


def test_a_record_is_set_aside_at_its_third_failure(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker(5)
    worker.run(_fails({2: 1}))
    assert worker.failures == 3
    assert [n for n, what in worker.applied if what] == [2]
    # 0 and 1 by themselves, then the rest at once again
    assert worker.pieces == [1, 1, 8]
    (said,) = [r for r in caplog.records if r.levelname == "CRITICAL"]
    assert said.fields == {"shard": 0, "offset": 2, "times": 1}  # type: ignore[attr-defined]


def test_what_stands_in_may_fail_as_well() -> None:
    worker = Worker(5)
    worker.run(_fails({1: 2}))
    assert worker.failures == 6
    assert dict(worker.applied)[1] == "!!"


@given(
    bad=st.dictionaries(st.sampled_from([*range(9), *range(1000, 1009)]), st.integers(1, 2), max_size=5),
    most=st.integers(1, 9),
)
def test_exactly_the_records_that_fail_are_set_aside(bad: dict[int, int], most: int) -> None:
    worker = Worker(9, most)
    worker.run(_fails(bad))
    assert {n: len(what) for n, what in worker.applied if what} == bad
    assert sorted(n for n, _ in worker.applied) == [*range(9), *range(1000, 1009)]
    # nothing is kept of what lies behind
    assert not worker.suspects._aside
    assert not worker.suspects._failures


def test_a_failure_that_passes_by_itself_costs_nobody_anything() -> None:
    worker = Worker(3)
    left = [2]

    def apply(shard: int, offset: int, what: str) -> None:
        if (shard, offset) == (0, 1) and left[0]:
            left[0] -= 1
            raise ArithmeticError

    worker.run(apply)
    assert {what for _, what in worker.applied} == {""}
    assert worker.failures == 2


def test_what_fails_for_everyone_is_laid_to_nobody() -> None:
    """Before a record is tried, and where it is excused, also between two records that were found guilty of nothing."""
    worker = Worker(3)

    def before() -> None:
        worker.suspects.failed()
        raise ArithmeticError

    def excused(shard: int, offset: int, what: str) -> None:
        with worker.suspects.nobody():
            worker.suspects.failed()
            raise ArithmeticError

    for _ in range(10):
        worker.round(_fails({}), before)
        worker.round(excused)
        worker.suspects.failed()  # while nothing is read: in what falls due by itself
    worker.run(_fails({}))
    assert {what for _, what in worker.applied} == {""}


def test_what_is_let_go_without_a_failure_is_not_held_against_it() -> None:
    """Fenced in the middle of a record, and later a bug that has nothing to do with it."""
    worker = Worker(1)

    def fenced(shard: int, offset: int, what: str) -> None:
        raise ArithmeticError

    worker.suspects.failed()
    for _ in range(5):
        worker.round(fenced)
        worker.suspects.failed()
    worker.run(_fails({}))
    assert {what for _, what in worker.applied} == {""}


def test_a_record_is_tried_again_after_it_was_excused() -> None:
    worker = Worker(2)

    def apply(shard: int, offset: int, what: str) -> None:
        with worker.suspects.nobody():
            pass
        _fails({1: 1})(shard, offset, what)

    worker.run(apply)
    assert dict(worker.applied)[1] == "!"


def test_one_poll_in_pieces_loses_neither_records_nor_holes() -> None:
    records: Any = [At(3), At(4), At(9)]
    lone: Any = [At(0)]
    polled = Polled({0: records, 1: lone}, {0: 12, 1: 1, 2: 7})
    found = [
        ({s: [r.offset for r in several] for s, several in p.records.items()}, p.positions) for p in batches(polled, 1)
    ]
    assert found == [({0: [3]}, {0: 4}), ({0: [4]}, {0: 9}), ({0: [9]}, {0: 12}), ({1: [0]}, {1: 1}), ({}, {2: 7})]


# -- what stands in for a decision ----------------------------------------------------------------------


REFUSED = Rejected(7, 5, b"d", 3, "somebody", "m-7", "pii:user_id", T0, "app")


def test_an_event_becomes_a_refusal_and_a_refusal_one_that_says_nothing() -> None:
    taken = event("City Added", T0, src=7, prev=5, city=BOSTON)
    once = instead(taken)
    assert once == Rejected(
        7, 5, taken.digest, taken.rules, taken.user_id, taken.message_id, NOT_DECIDED, taken.received_at, taken.source
    )
    assert instead(once) == msgspec.structs.replace(once, user_id="", message_id="", source="", reason=NOT_KEPT)
    assert instead(REFUSED) == Rejected(7, 5, b"d", 3, "", "", NOT_KEPT, T0, "")


@pytest.mark.parametrize(
    "decision",
    [event("Screen Viewed", T0, src=7, prev=5), REFUSED, Moved(7, 5, b"d", 3, 1), TimeRecord(7, b"d", 3, T0)],
)
def test_whatever_fails_the_chain_and_the_rules_version_stay(decision: Decision) -> None:
    """Else the next decision would be a gap, and a shard would miss a version the others have."""

    def chain(of: Decision) -> tuple[int, int | None, int]:
        return of.src, getattr(of, "prev", None), of.rules

    one = instead(decision)
    assert chain(one) == chain(instead(one)) == chain(decision)
    assert instead(instead(one)) == instead(one)
