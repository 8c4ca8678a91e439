"""What a user's orders come to, net of refunds and cancellations, however often and in whatever order these are told.

An order is known by its id, not by the event that told of it: a second `Order Completed` with the same id changes
nothing, a refund may come before its order. An order that was cancelled, or refunded whole, counts for nothing; one
of zero counts as an order. The newest 200 orders are kept one by one, and the newest 20 of which only a refund or a
cancellation was told. What is older stays in the totals as it was: a refund of it is not noticed, and a repeat of it
would be a new order.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from msgspec.structs import replace

from services.segmenter.domain.state import Cold, Daily, Order
from shared.contracts.events import Accepted
from shared.contracts.identifiers import message_hash

DAY_MS = 86_400_000
MAX_ORDERS = 200
MAX_WAITING = 20
MAX_REFUNDS = 8
MOST_MONEY = 10**12
SIGNALS = frozenset({"order", "refund", "cancellation"})
CHANNELS = ("", "online", "store", "pickup")
_DIGITS = {"JPY": 0, "KRW": 0, "VND": 0, "CLP": 0, "ISK": 0, "XAF": 0, "XOF": 0, "BHD": 3, "KWD": 3, "OMR": 3, "TND": 3}
"""Digits of a currency's minor unit where they are not two. Source: ISO 4217."""


class Totals(NamedTuple):
    """`days` are distinct days (UTC) with an order, `channels` orders by `CHANNELS`, `last_at` the newest order."""

    orders: int
    days: int
    revenue: int
    last_at: int
    channels: tuple[int, ...]


def minor_units(told: object, currency: str) -> int | None:
    """An amount in a currency's smallest unit, as 29.33 is 2933 cents; None for what is no amount."""
    if isinstance(told, bool) or not isinstance(told, int | float | str):
        return None
    try:
        amount = Decimal(str(told).strip())
    except InvalidOperation:
        return None
    if not amount.is_finite() or abs(amount) > MOST_MONEY:
        return None
    return int((amount * 10 ** _DIGITS.get(currency, 2)).to_integral_value())


def fold(cold: Cold, event: Accepted, signals: frozenset[str], currency: str) -> Cold:
    """The cold part with what the event tells of an order; the same object if that changes nothing. Amounts in
    another currency than the pack's are kept but never added to the revenue."""
    told = event.properties.get("order_id")
    if told is None and "order" not in signals:
        return cold  # a refund of nothing
    # an order without an id is one of its own: nobody can refer to it
    number = message_hash(str(told) if told is not None else event.message_id)
    known = next((order for order in cold.orders if order.number == number), None)
    order = known or Order(number, event.occurred_at)
    if "order" in signals and not order.placed:
        order = _placed(order, event, currency)
    if "refund" in signals:
        order = _refunded(order, event, currency)
    if "cancellation" in signals:
        order = replace(order, void=True)
    if order == known:
        return cold
    several = tuple(o for o in cold.orders if o.number != number)
    return replace(cold, orders=(*several, order))


def totals(cold: Cold) -> Totals:
    """What the orders kept one by one come to; days up to the one of the newest forgotten order are left out."""
    count, revenue, last_at = 0, 0, cold.forgotten_at
    days: set[int] = set()
    channels = [0] * len(CHANNELS)
    for order in cold.orders:
        if counts(order):
            count += 1
            revenue += net(order)
            days.add(order.at // DAY_MS)
            channels[order.channel] += 1
            last_at = max(last_at, order.at)
    before = cold.forgotten_at // DAY_MS
    return Totals(count, sum(day > before for day in days), revenue, last_at, tuple(channels))


def bounded(cold: Cold) -> Cold:
    """Without the oldest orders where there are too many; to be asked once their totals were taken. What was told of
    orders never seen pushes out none that was."""
    placed = [order for order in cold.orders if order.placed]
    waiting = len(cold.orders) - len(placed)
    if len(placed) <= MAX_ORDERS and waiting <= MAX_WAITING:
        return cold
    placed.sort(key=_age)
    gone = placed[: max(0, len(placed) - MAX_ORDERS)]
    forgotten_at = max([cold.forgotten_at, *(order.at for order in gone if counts(order))])
    others = sorted((order for order in cold.orders if not order.placed), key=_age)[-MAX_WAITING:]
    return replace(cold, orders=(*placed[len(gone) :], *others), forgotten_at=forgotten_at)


def united(own: Cold, other: Cold) -> tuple[Order, ...]:
    """The orders of two users who are one. One that both told of is one order: that of who placed it, the earlier if
    both did, less the refunds of both."""
    found = {order.number: order for order in other.orders}
    for order in own.orders:
        twin = found.get(order.number)
        found[order.number] = order if twin is None else _one(order, twin)
    return tuple(found.values())


def listed(cold: Cold, by: int) -> list[Daily]:
    """What the orders known one by one make among the counts of days, `by` times."""
    return [one for order in cold.orders for one in _listed(order, by)]


def moved(before: Cold, after: Cold) -> list[Daily]:
    """What it moves among the counts of days that `fold` made `after` of `before`: an order and what it brought in
    belong to the day it was placed, whatever becomes of it later."""
    now = after.orders[-1]
    was = next((order for order in before.orders if order.number == now.number), None)
    return (_listed(was, -1) if was is not None else []) + _listed(now, 1)


def _listed(order: Order, by: int) -> list[Daily]:
    if not counts(order):
        return []
    day = order.at // DAY_MS
    return [(day, "total", "orders", by), (day, "total", "revenue", by * net(order))]


def _one(order: Order, twin: Order) -> Order:
    first, second = sorted((order, twin), key=lambda one: (not one.placed, one.at))
    refunds = {**dict(second.refunds), **dict(first.refunds)}
    return replace(first, void=first.void or second.void, refunds=_bounded_refunds(tuple(refunds.items())))


def _age(order: Order) -> tuple[int, int]:
    return order.at, order.number


def counts(order: Order) -> bool:
    whole = order.revenue > 0 and _given_back(order) >= order.revenue
    return order.placed and not order.void and not whole


def net(order: Order) -> int:
    """What an order that counts brought in."""
    return 0 if order.foreign else order.revenue - _given_back(order)


def _given_back(order: Order) -> int:
    return sum(amount for _, amount in order.refunds)


def _placed(order: Order, event: Accepted, currency: str) -> Order:
    told = event.properties
    of = _currency(told, currency)
    amount = _amount(told, of)
    channel = told.get("channel")
    return replace(
        order,
        at=event.occurred_at,
        placed=True,
        revenue=max(0, amount or 0),
        foreign=of != currency,
        channel=CHANNELS.index(channel) if channel in CHANNELS else 0,
    )


def _refunded(order: Order, event: Accepted, currency: str) -> Order:
    """A refund without an amount is one of the whole. Refunds in part add up, each counted once by its own id."""
    told = event.properties
    amount = _amount(told, _currency(told, currency))
    if amount is None:
        return replace(order, void=True)
    named = told.get("refund_id")
    number = message_hash(str(named) if named is not None else event.message_id)
    if any(known == number for known, _ in order.refunds):
        return order
    return replace(order, refunds=_bounded_refunds((*order.refunds, (number, abs(amount)))))


def _bounded_refunds(refunds: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """The two oldest become one that has no name."""
    while len(refunds) > MAX_REFUNDS:
        refunds = ((0, refunds[0][1] + refunds[1][1]), *refunds[2:])
    return refunds


def _amount(told: Mapping[str, Any], currency: str) -> int | None:
    revenue = minor_units(told.get("revenue"), currency)
    return minor_units(told.get("total"), currency) if revenue is None else revenue


def _currency(told: Mapping[str, Any], usual: str) -> str:
    named = told.get("currency")
    return named.strip().upper() if isinstance(named, str) and named.strip() else usual
