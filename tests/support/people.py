"""How tests make rules, events and users for the fold, without a broker or a database."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import msgspec

from services.packs import load_pack
from services.segmenter.domain.compiled import Compiled, InForce
from services.segmenter.domain.decide import decide
from services.segmenter.domain.passing import tick
from services.segmenter.domain.state import Change, Cold, Daily, Hot
from shared.contracts.events import Accepted, Context
from shared.contracts.rules import ActivityDays, Rules

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
T0 = 1_767_225_600_000
"""2026-01-01T00:00:00Z"""

NEW_YORK, CHICAGO, BOSTON = 5128581, 4887398, 4930956

_numbers = itertools.count(1)


@cache
def weather() -> Rules:
    """The rules of the shipped weather pack."""
    return load_pack("weather")


@cache
def shop() -> Rules:
    """The rules of the shipped shop pack."""
    return load_pack("commerce")


def with_days(**days: int) -> Rules:
    """The weather rules with other activity thresholds."""
    return msgspec.structs.replace(weather(), activity=ActivityDays(**days))


def in_force(*versions: tuple[int, Rules]) -> InForce:
    """The rules of a shard that entered these versions, numbered from 1, at these moments."""
    history = tuple((since, Compiled(n, rules)) for n, (since, rules) in enumerate(versions, 1))
    return InForce(history[-1][1], history)


def event(
    name: str,
    at: int,
    *,
    received: int | None = None,
    message_id: str | None = None,
    city: int | None = None,
    properties: Mapping[str, Any] | None = None,
    context: Context | None = None,
    user: str = "u",
    src: int | None = None,
    prev: int = -1,
    rules: int = 1,
    mode: str = "live",
) -> Accepted:
    """An accepted event that occurred at `at`, by default received at once and with an id of its own."""
    number = next(_numbers) if src is None else src
    received = at if received is None else received
    return Accepted(
        number, prev, b"", rules, user, message_id or f"m-{number}", name, at, received, mode, "test", city,
        dict(properties or {}), context,
    )  # fmt: skip


class Person:
    """One user of one shard: events are folded and ticks applied as the owner of the shard does it."""

    def __init__(self, rules: InForce | None = None) -> None:
        self.rules = rules or in_force((0, weather()))
        self.hot: Hot | None = None
        self.cold: Cold | None = None
        self.spilled: set[int] = set()
        self.last_tick = 0
        self.changes: list[Change] = []
        self.daily: Counter[tuple[int, str, str]] = Counter()

    def see(self, one: Accepted) -> list[Change]:
        outcome = decide(
            self.hot, self.cold, one, max(one.received_at, self.last_tick), self.rules, frozenset(self.spilled)
        )
        self.hot = outcome.hot
        self.cold = outcome.cold if outcome.cold is not None else self.cold
        if outcome.spilled is not None:
            self.spilled.add(outcome.spilled[0])
        self.changes += outcome.changes
        self._count(outcome.daily)
        return outcome.changes

    def all(self, several: Iterable[Accepted]) -> Person:
        for one in several:
            self.see(one)
        return self

    def tick(self, as_of: int) -> list[Change]:
        self.last_tick = max(self.last_tick, as_of)
        if self.hot is None:
            return []
        self.hot, changes, daily = tick(self.hot, as_of, self.rules)
        self.changes += changes
        self._count(daily)
        return changes

    def _count(self, daily: Iterable[Daily]) -> None:
        for day, kind, name, by in daily:
            self.daily[day, kind, name] += by

    def by_day(self, kind: str, name: str) -> dict[int, int]:
        """What this user adds to a count, day by day."""
        return {day: n for (day, *of), n in sorted(self.daily.items()) if of == [kind, name] and n}

    @property
    def state(self) -> Hot:
        assert self.hot is not None
        return self.hot


def kinds(changes: Iterable[Change]) -> list[tuple[str, Any]]:
    """Changes in short: (kind, what it came to)."""
    return [
        (
            c.kind,
            c.payload.get("to") or c.payload.get("segment") or (c.payload.get("relation"), c.payload.get("city_id")),
        )
        for c in changes
    ]
