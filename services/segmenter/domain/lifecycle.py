"""How far along the journey a user is, and whether they count as customer, repeat, loyal."""

from __future__ import annotations

from collections.abc import Mapping

from services.segmenter.domain.compiled import Compiled
from services.segmenter.domain.shop import NEW
from services.segmenter.domain.state import CUSTOMER, LOYAL, REPEAT, Hot, Shop
from services.segmenter.domain.visited import ENTRY_BYTES
from shared.contracts.rules import Measure

_SHOP = frozenset(Shop.__struct_fields__)


def measure(hot: Hot, name: Measure) -> int:
    """What a threshold is held against."""
    if name == "searched":
        return len(hot.searched) // ENTRY_BYTES
    if name == "added":
        return len(hot.added) // ENTRY_BYTES
    if name == "cities":
        return (len(hot.searched) + len(hot.added)) // ENTRY_BYTES + (1 if hot.default_city else 0)
    if name == "average_order":
        return hot.revenue // hot.orders if hot.orders else 0
    number: int = getattr(hot.shop or NEW, name) if name in _SHOP else getattr(hot, name)
    return number


def holds(hot: Hot, thresholds: Mapping[Measure, int]) -> bool:
    """Whether every threshold is reached; an empty set always holds."""
    for name, least in thresholds.items():  # noqa: SIM110 - a generator would cost twice as much here
        if measure(hot, name) < least:
            return False
    return True


def within(hot: Hot, bounds: Mapping[Measure, int]) -> bool:
    """Whether no bound is passed; an empty set always holds."""
    return all(measure(hot, name) <= most for name, most in bounds.items())


def next_stage(hot: Hot, rules: Compiled) -> str | None:
    """The stage behind the present one if its thresholds hold; None otherwise. Stages are never lost.

    A stage that the rules no longer know counts as the first.
    """
    if hot.stage not in rules.stages:
        return rules.first_stage
    following = rules.stages[hot.stage]
    return following.id if following is not None and holds(hot, following.enter) else None


def flags(hot: Hot, rules: Compiled) -> int:
    rates = rules.rules.rates
    found = 0
    for bit, thresholds in ((CUSTOMER, rates.customer), (REPEAT, rates.repeat), (LOYAL, rates.loyal)):
        if thresholds and holds(hot, thresholds):
            found |= bit
    return found
