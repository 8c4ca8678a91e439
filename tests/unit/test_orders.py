"""What orders come to when they are told twice, late, backwards, in part, and in other currencies."""

from __future__ import annotations

from typing import Any

import pytest

from services.segmenter.domain.orders import MAX_ORDERS, minor_units
from services.segmenter.domain.state import CUSTOMER, LOYAL, REPEAT, Hot, decode_cold, encode_cold
from services.segmenter.queries import bought, rfm
from shared.process.clock import iso
from tests.support.people import DAY, HOUR, T0, Person, event, in_force, shop

RULES = in_force((0, shop()))
NAMES = {"order": "Order Completed", "refund": "Order Refunded", "cancel": "Order Cancelled"}
Told = tuple[str, float, dict[str, Any]]


def after(*told: Told) -> Person:
    """The user after (kind, days since T0, properties), received in this order, a minute apart, later than all."""
    person = Person(RULES)
    for minute, (kind, day, properties) in enumerate(told):
        received = T0 + 40 * DAY + minute * 60_000
        person.see(event(NAMES[kind], T0 + int(day * DAY), received=received, properties=properties))
    return person


def counted(hot: Hot) -> tuple[int, int, int]:
    return hot.orders, hot.order_days, hot.revenue


def order(number: int | str, revenue: float | None = 10.0, **more: Any) -> dict[str, Any]:
    told = {"order_id": number} | more
    return told if revenue is None else told | {"revenue": revenue}


CASES: dict[str, tuple[list[Told], tuple[int, int, int]]] = {
    "two on one day": ([("order", 1, order("a")), ("order", 1.2, order("b", 29.33))], (2, 1, 3933)),
    "on two days": ([("order", 1, order("a")), ("order", 2, order("b"))], (2, 2, 2000)),
    "the same order told twice": ([("order", 1, order("a")), ("order", 2, order("a", 99.0))], (1, 1, 1000)),
    "an id that is a number": ([("order", 1, order(7)), ("refund", 2, order("7", None))], (0, 0, 0)),
    "without an id each is its own": ([("order", 1, {"revenue": 1.0}), ("order", 1, {"revenue": 1.0})], (2, 1, 200)),
    "of zero": ([("order", 1, order("a", 0.0))], (1, 1, 0)),
    "of nothing said": ([("order", 1, order("a", None))], (1, 1, 0)),
    "of less than nothing": ([("order", 1, order("a", -5.0))], (1, 1, 0)),
    "total for want of revenue": ([("order", 1, order("a", None, total="12.50"))], (1, 1, 1250)),
    "cancelled": ([("order", 1, order("a")), ("order", 2, order("b")), ("cancel", 3, order("a", None))], (1, 1, 1000)),
    "cancelled before it was told": ([("cancel", 3, order("a", None)), ("order", 1, order("a"))], (0, 0, 0)),
    "cancelled twice": ([("order", 1, order("a")), *[("cancel", 3, order("a", None))] * 2], (0, 0, 0)),
    "refunded whole": ([("order", 1, order("a")), ("refund", 2, order("a", None))], (0, 0, 0)),
    "refunded whole by amount": ([("order", 1, order("a")), ("refund", 2, order("a", 10.0))], (0, 0, 0)),
    "refunded before it was told": ([("refund", 2, order("a", 4.0)), ("order", 1, order("a"))], (1, 1, 600)),
    "refunded in parts": ([("order", 1, order("a")), *[("refund", 2, order("a", 4.0))] * 2], (1, 1, 200)),
    "one refund told twice": (
        [("order", 1, order("a")), *[("refund", 2, order("a", 4.0, refund_id="r"))] * 3],
        (1, 1, 600),
    ),
    "refunded in more parts than are kept": (
        [("order", 1, order("a")), *[("refund", 2, order("a", 0.5))] * 15],
        (1, 1, 250),
    ),
    "refunded in parts to the end": ([("order", 1, order("a")), *[("refund", 2, order("a", 2.5))] * 5], (0, 0, 0)),
    "a refund of something else": ([("order", 1, order("a")), ("refund", 2, order("b", None))], (1, 1, 1000)),
    "a refund of nothing": ([("order", 1, order("a")), ("refund", 2, {"revenue": 10.0})], (1, 1, 1000)),
    "a refund told as a negative amount": ([("order", 1, order("a")), ("refund", 2, order("a", -4.0))], (1, 1, 600)),
    "in another currency": ([("order", 1, order("a", 1000.0, currency="JPY")), ("order", 1, order("b"))], (2, 1, 1000)),
    "refunded whole in another currency": (
        [("order", 1, order("a", 900, currency="jpy")), ("refund", 1, order("a", 900, currency="JPY"))],
        (0, 0, 0),
    ),
}


@pytest.mark.parametrize(("told", "expected"), CASES.values(), ids=CASES)
def test_orders_are_counted_net(told: list[Told], expected: tuple[int, int, int]) -> None:
    person = after(*told)
    assert counted(person.state) == expected
    assert bool(person.state.flags & CUSTOMER) == (expected[0] > 0)


def test_who_counts_follows_the_orders_in_both_directions() -> None:
    days = [("order", n, order(n)) for n in range(4)]
    loyal = after(*days)
    assert loyal.state.flags == CUSTOMER | REPEAT | LOYAL
    loyal.see(event("Order Cancelled", T0 + 50 * DAY, properties={"order_id": 3}))
    assert loyal.state.flags == CUSTOMER | REPEAT
    # the journey is a history: what was reached stays reached
    assert loyal.state.stage == "engage"


def test_the_channels_of_orders() -> None:
    several = [("order", n, order(n, channel=channel)) for n, channel in enumerate(["online", "store", "store", "x"])]
    person = after(*several, ("order", 9, order(9, channel="pickup")), ("cancel", 10, order(1, None)))
    made = person.state.shop
    assert made is not None
    assert (made.online_orders, made.store_orders, made.pickup_orders, person.state.orders) == (1, 1, 1, 4)


def test_refunds_are_no_sign_of_life() -> None:
    """It is the shop that gives the money back: nobody becomes active by it."""
    person = after(("order", 1, order("a")))
    before = person.state.activity_at, person.state.activities
    person.see(event("Order Refunded", T0 + 300 * DAY, properties={"order_id": "a"}))
    assert person.state.activities == before[1]
    assert person.state.activity == "lapsed"


def test_more_orders_than_are_kept_stay_in_the_totals() -> None:
    """The row is bounded, the totals are not: forgetting an order must not uncount it, nor its day."""
    person = Person(RULES)
    for number in range(MAX_ORDERS + 50):
        at = T0 + number * 12 * HOUR
        person.see(event("Order Completed", at, properties=order(number)))
        assert counted(person.state) == (number + 1, number // 2 + 1, 1000 * (number + 1))
    assert person.cold is not None
    assert len(person.cold.orders) == MAX_ORDERS
    assert decode_cold(encode_cold(person.cold)) == person.cold
    assert len(encode_cold(person.cold)) < 8000
    at = T0 + 200 * DAY
    for number in range(MAX_ORDERS + 50):
        person.see(event("Order Cancelled", at, properties={"order_id": number}))
    # the fifty oldest can no longer be undone; the day of the newest of them was full
    assert counted(person.state) == (50, 25, 50_000)
    made = person.state.shop
    assert made is not None
    assert made.last_order_at == T0 + 49 * 12 * HOUR


def test_what_is_shown_of_a_customer() -> None:
    person = after(("order", 1, order("a", 29.33)), ("order", 3, order("b", channel="store")))
    person.see(event("Product Viewed", T0 + 41 * DAY))
    hot = person.state
    assert hot.shop is not None
    assert rfm(hot) == {
        "last_order_at": iso(T0 + 3 * DAY), "orders": 2, "order_days": 2, "revenue": 3933, "average_order": 1966,
    }  # fmt: skip
    shown = bought(hot.shop)
    assert (shown["viewed_at"], shown["score"], shown["store_orders"]) == ([iso(T0 + 41 * DAY)], None, 1)
    for number in ("a", "b"):
        person.see(event("Order Cancelled", T0 + 42 * DAY, properties={"order_id": number}))
    assert rfm(person.state) is None


@pytest.mark.parametrize(
    ("told", "currency", "expected"),
    [
        (29.33, "USD", 2933), (0.1 + 0.2, "USD", 30), ("12.34", "USD", 1234), (5, "JPY", 5), (1.234, "KWD", 1234),
        (True, "USD", None), ("a lot", "USD", None), ("nan", "USD", None), ("1e99", "USD", None), (None, "USD", None),
        ({}, "USD", None), (" 7 ", "USD", 700),
    ],
)  # fmt: skip
def test_amounts_in_minor_units(told: object, currency: str, expected: int | None) -> None:
    assert minor_units(told, currency) == expected
