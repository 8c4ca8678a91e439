"""How long and how often is measured, and in which order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.bench.figures import Round
from services.bench.traffic import Spread

_Run = Callable[[], Awaitable[Round]]


@dataclass(frozen=True)
class Plan:
    """`seconds`: how long a round lasts, or would at the rate that is the target. `users`, `spread`: who acts."""

    seconds: float = 2.0
    rounds: int = 3
    users: int = 200_000
    spread: Spread = "zipf"

    def backlog(self, per_second: int) -> int:
        return max(1, round(self.seconds * per_second))

    @property
    def patience(self) -> float:
        """How long a round may take before it counts as stuck; short enough that no frozen service is given up."""
        return 20 + 5 * self.seconds


async def alternately(rounds: int, product: _Run, ceiling: _Run) -> tuple[list[Round], list[Round]]:
    """Product, ceiling, product, ceiling, …"""
    products, ceilings = [], []
    for _ in range(rounds):
        products.append(await product())
        ceilings.append(await ceiling())
    return products, ceilings
