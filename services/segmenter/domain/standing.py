"""From which day on someone counts as customer, repeat or loyal customer, and from which day not any more.

A role that thresholds on orders alone make is read off the orders: it begins on the day of the order that completes
it, in whatever order they are told, and where that order is cancelled or refunded it was never begun. Any other role
begins and ends on the day of what made it so, though never before the user's role that turned last. New rules begin
and end roles on the day on which they enter the shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from services.segmenter.domain import orders
from services.segmenter.domain.compiled import DAY_MS, Compiled, InForce
from services.segmenter.domain.state import ROLES, Cold, Daily, Hot
from shared.contracts.rules import Measure

RATE = "rate"
_OF_ORDERS = frozenset({"orders", "order_days", "revenue"})
_EVER = -(10**9)


class _Era(NamedTuple):
    """Days from `begin` up to `end` (None: until further notice) on which orders made the role at these thresholds."""

    begin: int
    end: int | None
    least: Mapping[Measure, int]


def turned(hot: Hot, flags: int, at: int, by_rules: bool, rules: Compiled) -> list[Daily]:
    """What it moves that `hot.flags` become `flags`, on a fresh copy of `hot`. What orders turn, `reordered` tells."""
    moved = []
    for bit, role in ROLES:
        if not (flags ^ hot.flags) & bit or (not by_rules and _of_orders(_least(rules, role))):
            continue
        day = at // DAY_MS if by_rules else max(at // DAY_MS, hot.turned_day)
        hot.turned_day = max(hot.turned_day, day)
        moved.append((day, RATE, role, 1 if flags & bit else -1))
    return moved


def reordered(hot: Hot, before: Cold, after: Cold, totals: orders.Totals, rules: InForce) -> list[Daily]:
    """What it moves that a user's orders were `before` and are `after`; `hot` and `totals` are those of before."""
    if not _eras(rules.history):
        return []
    # orders that are no longer known one by one: all of them lie before the known ones, and none of them changes
    forgotten = _forgotten(hot, totals)
    turns = _turns(forgotten, before.forgotten_at, after, rules)
    turns.subtract(_turns(forgotten, before.forgotten_at, before, rules))
    return [(day, RATE, role, by) for (day, role), by in turns.items() if by]


def ordered(hot: Hot, cold: Cold, totals: orders.Totals, rules: InForce, by: int) -> list[Daily]:
    """What a user's orders, as they are, make among the counts of days, `by` times."""
    turns = _turns(_forgotten(hot, totals), cold.forgotten_at, cold, rules)
    return [(day, RATE, role, n * by) for (day, role), n in turns.items() if n]


def _forgotten(hot: Hot, totals: orders.Totals) -> tuple[int, int, int]:
    return hot.orders - totals.orders, hot.order_days - totals.days, hot.revenue - totals.revenue


def _turns(forgotten: tuple[int, int, int], forgotten_at: int, cold: Cold, rules: InForce) -> Counter[tuple[int, str]]:
    """By (day, role) how often orders alone begin or end it."""
    timeline, turns = _by_day(cold), Counter[tuple[int, str]]()
    for role, several in _eras(rules.history):
        for era in several:
            day = _since(era.least, forgotten, forgotten_at // DAY_MS, timeline)
            begin = None if day is None else max(day, era.begin)
            if begin is None or (era.end is not None and begin >= era.end):
                continue
            turns[begin, role] += 1
            if era.end is not None:
                turns[era.end, role] -= 1
    return turns


def _by_day(cold: Cold) -> list[tuple[int, int]]:
    """Day and net amount of every order that counts, by day."""
    return sorted((order.at // DAY_MS, orders.net(order)) for order in cold.orders if orders.counts(order))


def _since(
    least: Mapping[Measure, int], forgotten: tuple[int, int, int], known_from: int, timeline: list[tuple[int, int]]
) -> int | None:
    """The day since which the thresholds hold; None if they do not in the end."""
    count, days, revenue = forgotten
    wanted, wanted_days = least.get("orders", 0), least.get("order_days", 0)
    wanted_revenue = least.get("revenue", _EVER)
    last = since = known_from
    holding = count >= wanted and days >= wanted_days and revenue >= wanted_revenue
    for day, amount in timeline:
        count, days, revenue = count + 1, days + (day > last), revenue + amount
        last = max(last, day)
        held, holding = holding, count >= wanted and days >= wanted_days and revenue >= wanted_revenue
        if holding and not held:
            since = day
    return since if holding else None


@lru_cache(maxsize=256)
def _eras(history: tuple[tuple[int, Compiled], ...]) -> tuple[tuple[str, tuple[_Era, ...]], ...]:
    """By role the spans in which orders alone made it. What the first rules say holds for all that was before them."""
    found = []
    for _, role in ROLES:
        several: list[_Era] = []
        for number, (since, rules) in enumerate(history):
            begin, least = (since // DAY_MS if number else _EVER), _least(rules, role)
            if several and several[-1].least == least:
                continue
            if several:
                several[-1] = several[-1]._replace(end=begin)
            several.append(_Era(begin, None, least))
        several = [era for era in several if _of_orders(era.least)]
        if several:
            found.append((role, tuple(several)))
    return tuple(found)


def _least(rules: Compiled, role: str) -> Mapping[Measure, int]:
    least: Mapping[Measure, int] = getattr(rules.rules.rates, role)
    return least


def _of_orders(least: Mapping[Measure, int]) -> bool:
    return any(least.values()) and least.keys() <= _OF_ORDERS
