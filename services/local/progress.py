"""How far a long reading has come, how fast it is, and how long it will take: said every few seconds."""

from __future__ import annotations

from collections.abc import Sequence

from services.local.archived import Road
from services.local.children import Say
from shared.kafka.records import InRecord
from shared.process.clock import monotonic

_SECONDS = 2.0


class Progress:
    def __init__(self, what: str, road: Road, say: Say) -> None:
        self._what, self._road, self._say = what, road, say
        self.records = 0
        self._began = self._said = monotonic()

    def read(self, page: Sequence[InRecord]) -> None:
        self.records += len(page)
        now = monotonic()
        if now - self._said < _SECONDS:
            return
        self._said = now
        rate, reached = self.records / (now - self._began), page[-1].offset + 1
        left = max(0, self._road.end - reached)
        self._say(f"{self._what}: {reached:,} of {reached + left:,}, {rate:,.0f}/s, {left / rate:,.0f} s left")
