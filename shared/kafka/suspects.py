"""Which record makes the code fail: found by applying a poll record by record, and set aside when it is certain.

After a bug everything is read again, so the record that caused it would fail for ever and hold up its shard. It is
found by its offset alone, without knowing what it says, so that it does not matter where it fails: while its user is
loaded, in the fold, or at the commit.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from shared.kafka.shard_consumer import Polled

log = logging.getLogger("perennial.owner")

_PATIENCE = 2
"""How often a record may fail by itself, after the poll it came in has failed."""

T = TypeVar("T")
Place = tuple[int, int]
"""(shard, offset)"""


class Suspects:
    """One worker's; all calls come from the task that applies."""

    def __init__(self) -> None:
        self._aside: Counter[Place] = Counter()
        self._failures: Counter[Place] = Counter()
        self._trying: Place | None = None
        self._one_by_one = False

    def pieces(self, polled: Polled) -> Iterator[Polled]:
        """The poll whole, or record by record after a failure. Who asks for the next piece has applied the last."""
        for piece in batches(polled, 1) if self._one_by_one else (polled,):
            yield piece
            self._passed(piece)
        self._one_by_one = False

    def trying(self, piece: Polled) -> None:
        """From here on a failure is laid to the record of `piece`, if it was cut out to find the one that fails."""
        if self._one_by_one:
            self._trying = next(((shard, r.offset) for shard, several in piece.records.items() for r in several), None)

    @contextmanager
    def nobody(self) -> Iterator[None]:
        """A failure within is no record's: any other would have met it."""
        trying, self._trying = self._trying, None
        yield
        self._trying = trying

    def replace(self, polled: Polled, decoded: Mapping[int, list[T]], of: Callable[[T], T]) -> None:
        """Put into `decoded`, which is `polled` in order, what stands in for a record that was set aside.

        `of` is applied as often as that happened: what stands in may itself have failed.
        """
        if not self._aside:
            return
        for shard, records in polled.records.items():
            for n, record in enumerate(records):
                for _ in range(self._aside[shard, record.offset]):
                    decoded[shard][n] = of(decoded[shard][n])

    def failed(self) -> None:
        """What was tried failed, and comes again."""
        place, self._trying = self._trying, None
        self._one_by_one = True
        if place is None:
            return
        self._failures[place] += 1
        if self._failures[place] >= _PATIENCE:
            del self._failures[place]
            self._aside[place] += 1
            self._one_by_one = False
            shard, offset = place
            log.critical(
                "poison record set aside",
                extra={"fields": {"shard": shard, "offset": offset, "times": self._aside[place]}},
            )

    def release(self) -> None:
        """Nothing is being tried: the shards were let go."""
        self._trying = None

    def _passed(self, piece: Polled) -> None:
        self._trying = None
        if self._aside or self._failures:
            for shard, records in piece.records.items():
                for record in records:
                    self._aside.pop((shard, record.offset), None)
                    self._failures.pop((shard, record.offset), None)


def batches(polled: Polled, most: int) -> Iterable[Polled]:
    """One poll in pieces of at most `most` records."""
    for shard, records in polled.records.items():
        for start in range(0, len(records), most):
            piece = records[start : start + most]
            behind = records[start + most].offset if start + most < len(records) else polled.positions[shard]
            yield Polled({shard: piece}, {shard: behind})
    empty = {s: p for s, p in polled.positions.items() if s not in polled.records}
    if empty:
        yield Polled({}, empty)
