"""On which day someone becomes a customer, and on which they are none any more."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shared.contracts.events import Accepted
from shared.contracts.rules import Rates
from tests.support.people import DAY, NEW_YORK, T0, Person, event, in_force, shop

TODAY = T0 // DAY


def ordered(number: int, day: int, *, received: int | None = None) -> Accepted:
    told = {"order_id": str(number), "revenue": 10.0}
    return event("Order Completed", T0 + day * DAY, received=_at(received, day), properties=told)


def cancelled(number: int, day: int) -> Accepted:
    return event("Order Cancelled", T0 + day * DAY, properties={"order_id": str(number)})


def _at(received: int | None, day: int) -> int:
    return T0 + (day if received is None else received) * DAY


def days(person: Person, role: str) -> dict[int, int]:
    return {day - TODAY: by for day, by in person.by_day("rate", role).items()}


@pytest.mark.parametrize("reverse", [False, True])
def test_a_role_of_orders_begins_with_the_order_that_completes_it(reverse: bool) -> None:
    """Not with the last one told: a shop's history comes in any order."""
    told = [ordered(n, day, received=100) for n, day in enumerate((3, 3, 10, 20, 40, 50))]
    person = Person(in_force((0, shop()))).all(reversed(told) if reverse else told)
    assert (days(person, "customer"), days(person, "repeat"), days(person, "loyal")) == ({3: 1}, {10: 1}, {40: 1})


def test_who_was_a_customer_by_a_cancelled_order_never_was() -> None:
    person = Person(in_force((0, shop()))).all([ordered(1, 3), cancelled(1, 90)])
    assert days(person, "customer") == {} == person.by_day("total", "orders") == person.by_day("total", "revenue")
    person.see(ordered(2, 95))
    assert days(person, "customer") == {95: 1}


def test_a_cancellation_moves_the_day_to_that_of_the_next_order() -> None:
    person = Person(in_force((0, shop()))).all([ordered(1, 3), ordered(2, 8), ordered(3, 20), cancelled(1, 90)])
    assert (days(person, "customer"), days(person, "repeat")) == ({8: 1}, {20: 1})


def test_orders_no_longer_known_one_by_one_keep_their_day() -> None:
    """Of more than two hundred, the first ones are only in the totals."""
    person = Person(in_force((0, shop()))).all(ordered(n, n // 4) for n in range(260))
    person.see(cancelled(259, 100))
    assert days(person, "loyal") == {3: 1}


def test_other_thresholds_begin_and_end_roles_on_the_day_they_come_in() -> None:
    """What was so before stays so: an order told late is judged by the rules of its own day."""
    strict = msgspec.structs.replace(shop(), rates=Rates({"orders": 2}, {"order_days": 2}, {"order_days": 2}))
    person = Person(in_force((0, shop()))).all([ordered(1, 3), ordered(2, 8), ordered(3, 9), cancelled(3, 10)])
    other = Person(in_force((0, shop()))).all([ordered(1, 3)])
    for one in (person, other):
        one.rules = in_force((0, shop()), (T0 + 30 * DAY, strict))
        one.tick(T0 + 60 * DAY)
    assert (days(person, "customer"), days(person, "loyal")) == ({3: 1}, {30: 1})
    assert days(other, "customer") == {3: 1, 30: -1}
    other.see(ordered(4, 1, received=61))
    assert (days(other, "customer"), days(other, "repeat"), days(other, "loyal")) == ({1: 1}, {3: 1}, {30: 1})


def test_a_role_of_cities_ends_on_the_day_the_city_goes() -> None:
    def place(name: str, day: int, **how: Any) -> Accepted:
        return event(name, T0 + day * DAY, city=NEW_YORK, **how)

    person = Person().all([place("City Added", 2), place("City Removed", 9)])
    assert days(person, "customer") == {2: 1, 9: -1}
    person.see(place("City Added", 5, received=T0 + 12 * DAY))
    assert days(person, "customer") == {2: 1}, "never twice a customer on one day"
    person.see(place("City Removed", 20))
    assert days(person, "customer") == {2: 1, 20: -1}
    person.see(place("City Searched", 25))
    person.tick(T0 + 100 * DAY)
    assert days(person, "customer") == {2: 1, 20: -1, 25: 1, 55: -1}


def test_a_user_counts_from_the_first_thing_they_did() -> None:
    person = Person().all(
        [event("Application Opened", T0 + 9 * DAY), event("Application Opened", T0, received=T0 + 10 * DAY)]
    )
    assert person.by_day("users", "all") == {TODAY: 1}
