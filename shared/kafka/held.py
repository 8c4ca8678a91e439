"""Which shards' records are held back by an open transaction, and for how long.

Whoever reads only what is committed gets nothing from behind the first record of a transaction that was neither
committed nor aborted, whoever wrote it. Only its producer, the broker or an operator can end it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

from shared.process.clock import monotonic

log = logging.getLogger("perennial.held")

_SAID_AFTER_SECONDS = 30.0


class Reach(NamedTuple):
    """How far a shard was read, up to where the broker gives it, and where it ends. `stable` is None or negative where
    the broker does not say."""

    position: int
    stable: int | None
    highwater: int | None


class _Hold(NamedTuple):
    offset: int
    since: float
    said: bool


class Held:
    """One consumer's; `seconds` may be asked at any time."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._holds: dict[int, _Hold] = {}

    def note(self, reached: Mapping[int, Reach]) -> None:
        """What the last fetch told of all shards that are read."""
        now = monotonic()
        holds: dict[int, _Hold] = {}
        for shard, reach in reached.items():
            if not held(reach):
                continue
            hold = self._holds.get(shard)
            if hold is None or hold.offset != reach.position:
                hold = _Hold(reach.position, now, said=False)
            elif not hold.said and now - hold.since > _SAID_AFTER_SECONDS:
                hold = hold._replace(said=True)
                log.error(
                    "an open transaction holds back what lies behind it; end it, or have the broker abort it",
                    extra={"fields": {"topic": self._topic, "partition": shard, "offset": hold.offset}},
                )
            holds[shard] = hold
        self._holds = holds

    def forget(self) -> None:
        """The shards were dealt out anew."""
        self._holds = {}

    def seconds(self) -> float:
        """How long the shard that waits longest has waited; 0 where none does."""
        holds = self._holds
        return monotonic() - min(hold.since for hold in holds.values()) if holds else 0.0


def held(reach: Reach) -> bool:
    """Whether everything the broker gives was read, and it has more."""
    if reach.stable is None or reach.stable < 0 or reach.highwater is None:
        return False
    return reach.position >= reach.stable and reach.highwater > reach.stable
