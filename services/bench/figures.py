"""What a measurement comes to: rounds of the product and of its ceiling, and the figure made of them. Pure.

Rounds are short and alternate, for the machine's speed drifts by a third within minutes: a ratio of medians of
neighbouring rounds stands where two rates measured apart would not.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

_NEXT_TO_NOTHING_SECONDS = 0.02
"""Processor time is told in hundredths of a second."""


class Round(msgspec.Struct, frozen=True):
    """One run: how much was done in which time; CPU seconds each process used meanwhile; latencies where they mean
    something."""

    events: int
    seconds: float
    cpu: dict[str, float] = {}
    p50_ms: float | None = None
    p99_ms: float | None = None

    @property
    def rate(self) -> float:
        return self.events / self.seconds


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the report. `target` is the least value wanted, or the most where `at_most`."""

    name: str
    what: str
    unit: str
    value: float
    ceiling: float | None = None
    target: float | None = None
    at_most: bool = False
    note: str = ""
    p50_ms: float | None = None
    p99_ms: float | None = None
    cpu_per_million: dict[str, float] = {}
    ceiling_cpu_per_million: dict[str, float] = {}
    values: list[float] = []
    ceiling_values: list[float] = []

    @property
    def ratio(self) -> float | None:
        return None if not self.ceiling else self.value / self.ceiling

    @property
    def met(self) -> bool | None:
        """None where there is no target."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    def told(self) -> dict[str, Any]:
        """As JSON shows it."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return {**found, "ratio": self.ratio, "met": self.met}


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of the values do not exceed (nearest rank). ValueError for no values."""
    if not values:
        raise ValueError("no values")
    ranked = sorted(values)
    rank = max(1, -(-len(ranked) * percent // 100))
    return ranked[int(rank) - 1]


def cpu_per_million(rounds: Sequence[Round]) -> dict[str, float]:
    """CPU seconds per million events of each process: the median over the rounds."""
    names = {name: None for one in rounds for name in one.cpu}
    return {
        name: statistics.median(one.cpu[name] / one.events * 1e6 for one in rounds if name in one.cpu) for name in names
    }


def throughput(
    name: str,
    what: str,
    product: Sequence[Round],
    ceiling: Sequence[Round] = (),
    *,
    unit: str = "events/s",
    target: float | None = None,
    note: str = "",
) -> Figure:
    """The figure of alternating rounds: medians on both sides."""
    return Figure(
        name,
        what,
        unit,
        statistics.median(one.rate for one in product),
        statistics.median(one.rate for one in ceiling) if ceiling else None,
        target,
        note=note,
        p50_ms=_median(one.p50_ms for one in product),
        p99_ms=_median(one.p99_ms for one in product),
        cpu_per_million=cpu_per_million(product),
        ceiling_cpu_per_million=cpu_per_million(ceiling),
        values=[one.rate for one in product],
        ceiling_values=[one.rate for one in ceiling],
    )


def _median(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def used(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What each process used between two readings; those that did next to nothing are left out."""
    spent = {name: after[name] - before[name] for name in before if name in after}
    return {name: seconds for name, seconds in spent.items() if seconds > _NEXT_TO_NOTHING_SECONDS}
