"""How many events a second are let through. Reads no clock."""

from __future__ import annotations

BURST_SECONDS = 2.0
"""So many seconds' worth may come at once after a quiet time."""


class Allowance:
    """A token bucket that may be overdrawn once: a batch passes whole where anything is left, and what it took too
    much has to be waited for by those behind it. So a batch larger than the bucket passes, too."""

    __slots__ = ("_at", "_left", "per_second")

    def __init__(self, per_second: float, now: float) -> None:
        self.per_second = per_second
        self._left, self._at = per_second * BURST_SECONDS, now

    def take(self, count: int, now: float) -> float:
        """0 where `count` events pass; otherwise nothing is taken, and it says in how many seconds to ask again."""
        self._left = min(self.per_second * BURST_SECONDS, self._left + max(0.0, now - self._at) * self.per_second)
        self._at = now
        if self._left <= 0:
            return (1 - self._left) / self.per_second
        self._left -= count
        return 0.0
