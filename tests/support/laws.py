"""Laws of `decide` and `tick` that hold under any rules and for any life; each test gives its own."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from services.segmenter.domain.compiled import InForce
from services.segmenter.domain.decide import decide, needs_cold
from services.segmenter.domain.passing import tick
from shared.contracts.events import Accepted
from tests.support.people import Person


def two_ticks_are_the_later_one(rules: InForce, life: Sequence[Accepted], to_a: int, to_b: int) -> None:
    """Otherwise the state would depend on how often the sweep came by, and no refold could ever agree."""
    hot = Person(rules).all(life).state
    a = life[-1].received_at + to_a
    once, at_once, all_days = tick(hot, a + to_b, rules)
    first, earlier, some_days = tick(hot, a, rules)
    second, later, other_days = tick(first, a + to_b, rules)
    assert second == once
    assert earlier + later == at_once
    assert some_days + other_days == all_days


def who_notices_does_not_matter(rules: InForce, life: Sequence[Accepted], data: st.DataObject, after: int) -> None:
    """A user swept between two events and one noticed by the next event tell the same story, change by change."""
    end = life[-1].received_at + after
    left_alone = Person(rules).all(life)
    left_alone.tick(end)
    swept = Person(rules)
    for one, following in zip(life, [*life[1:], None], strict=True):
        swept.see(one)
        until = following.received_at if following is not None else end
        for _ in range(data.draw(st.integers(0, 2))):
            swept.tick(data.draw(st.integers(max(swept.last_tick, one.received_at), until)))
    swept.tick(end)
    assert swept.state == left_alone.state
    assert swept.changes == left_alone.changes
    assert swept.daily == left_alone.daily


def due_is_when_something_changes(rules: InForce, life: Sequence[Accepted], most: int) -> None:
    """Too late, and a change is seen late; too early, and the sweep would find the same user again and again. After
    `most` moments nothing is due any more."""
    hot = Person(rules).all(life).state
    for _ in range(most):
        if hot.due_at < 0:
            assert tick(hot, 2**50, rules) == (hot, [], [])
            return
        same, nothing, none_moved = tick(hot, hot.due_at - 1, rules)
        assert same is hot
        assert (nothing, none_moved) == ([], [])
        moment = hot.due_at
        hot, changes, _ = tick(hot, moment, rules)
        assert changes
        assert {c.occurred_at for c in changes} == {moment}
        assert hot.due_at < 0 or hot.due_at > moment
    raise AssertionError("time alone goes on changing this user for ever")


def cold_is_looked_at_only_where_it_was_said(rules: InForce, life: Sequence[Accepted]) -> None:
    """The owner loads it only then: an unloaded one must make no difference."""
    person = Person(rules)
    for one in life:
        if not needs_cold(person.hot, one, rules.current):
            moment = max(one.received_at, person.last_tick)
            without = decide(person.hot, None, one, moment, rules)
            assert without == decide(person.hot, person.cold, one, moment, rules)
            assert without.cold is None
        person.see(one)
