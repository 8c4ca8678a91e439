"""The counts of each day, told again from what is known of every user in the end: sets of days, lists of orders.

Roles that orders alone make are asked day by day, under the rules of that day; all others are what turned on the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tests.support.oracle_person import DAY, Book, Person, of_orders
from tests.support.oracle_snapshot import Snapshot

Key = tuple[str, str, int]
"""(kind, name, day)"""


def compare(
    snapshot: Snapshot,
    shard: int,
    people: Iterable[Person],
    erased: Iterable[tuple[Person, int]],
    history: Sequence[tuple[int, Book]],
) -> list[str]:
    """`erased`: who was, and when. What they did stays counted; on that day there is one less of them."""
    expected: Counter[Key] = Counter()
    for person in people:
        expected.update(of(person, history))
    for person, at in erased:
        expected.update(of(person, history))
        if person.merged_into:
            continue
        expected["users", "all", at // DAY] -= 1
        for role in person.roles:
            expected["rate", role, at // DAY] -= 1
    actual = {(t["kind"], t["name"], t["day"]): t["users"] for t in snapshot.tallies_by_day if t["shard"] == shard}
    return [
        f"shard {shard}: on day {day} the count {kind} {name} is {actual.get((kind, name, day), 0)}, should be {should}"
        for kind, name, day in sorted(expected.keys() | actual.keys())
        if actual.get((kind, name, day), 0) != (should := expected[kind, name, day])
    ]


def of(person: Person, history: Sequence[tuple[int, Book]]) -> Counter[Key]:
    """What one user adds to the counts of days; of one who is part of another only what cannot be told again there."""
    found: Counter[Key] = Counter()
    for (day, what), n in person.visits.items():
        found["visit", what, day] += n
    for day, role, by in person.turns:
        found["rate", role, day] += by
    if person.merged_into:
        # days too far back to be taken out again
        found.update(("active", pause, day) for day, pause in person.settled.items())
        return found
    found["users", "all", person.first_seen // DAY] += 1
    found.update(("active", pause, day) for day, pause in person.pauses().items())
    found.update(("month", pause, _first_day(month)) for month, pause in _pauses(person.months, 2))
    orders = person.bought.orders()
    for order in orders:
        found["total", "orders", order["at"] // DAY] += 1
        found["total", "revenue", order["at"] // DAY] += order["net"]
    for role in ("customer", "repeat", "loyal"):
        for day, by in _role(role, orders, history):
            found["rate", role, day] += by
    return found


def _pauses(units: set[int], most: int) -> list[tuple[int, str]]:
    """Each unit with what lay between it and the one before."""
    inside = sorted(units)
    return [
        (unit, str(min(unit - before, most)) if before is not None else "first")
        for before, unit in zip([None, *inside], inside, strict=False)
    ]


def _first_day(month: int) -> int:
    """The first of a month, in days since 1970, by counting all months since then."""
    days = 0
    for number in range(1970 * 12, month):
        year, of_year = divmod(number, 12)
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        days += (31, 29 if leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)[of_year]
    return days


def _role(role: str, orders: list[dict[str, Any]], history: Sequence[tuple[int, Book]]) -> list[tuple[int, int]]:
    """(day, ±1) where a role begins and ends that the rules of the day make of orders alone."""
    days = sorted({order["at"] // DAY for order in orders})
    entered = [(since // DAY, book) for since, book in history]
    found, before = [], False
    for day in sorted({*days, *(on for on, _ in entered[1:])}):
        book = next((b for on, b in reversed(entered[1:]) if on <= day), entered[0][1])
        least = book.rates[role]
        now = of_orders(least) and all(_reaches(least, orders, later) for later in (day, *days) if later >= day)
        if now != before:
            found.append((day, 1 if now else -1))
        before = now
    return found


def _reaches(least: dict[str, int], orders: list[dict[str, Any]], day: int) -> bool:
    by_then = [order for order in orders if order["at"] // DAY <= day]
    have = {
        "orders": len(by_then),
        "order_days": len({order["at"] // DAY for order in by_then}),
        "revenue": sum(order["net"] for order in by_then),
    }
    return all(have[name] >= n for name, n in least.items())
