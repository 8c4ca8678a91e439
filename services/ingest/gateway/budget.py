"""How much the gateway holds in memory, and when it must say 429."""

from __future__ import annotations

from shared.process.metrics import GATEWAY_BYTES_BOUND, GATEWAY_BYTES_IN_FLIGHT


class Budget:
    """Bytes taken and not yet given back; bodies being read and records waiting for the broker alike."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        GATEWAY_BYTES_BOUND.set(limit)
        GATEWAY_BYTES_IN_FLIGHT.set_function(lambda: float(self.used))

    def take(self, size: int) -> bool:
        """False, and nothing is taken, where it would exceed the limit."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        self.used -= size
