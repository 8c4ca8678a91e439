"""Which events were posted lately? Raw records in pages: those of a span of time, and of these the last so many."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import NamedTuple

from services.ingest.domain.intake import RawRecord, raw_record
from services.ingest.letters.listing import FAR_MS
from shared.kafka.log_reader import LogReader


class Span(NamedTuple):
    """Raw records received `since` and before `until` (product time), of these the last `most`."""

    since: int = 0
    until: int = FAR_MS
    most: int = 100_000


class Traffic(NamedTuple):
    """What a span selects of the log as it stood: the records from `starts` to before `ends`, by partition."""

    starts: dict[int, int]
    ends: dict[int, int]

    @property
    def total(self) -> int:
        """So many records, or fewer, where the log has holes."""
        return sum(self.ends[p] - self.starts[p] for p in self.starts)


async def select(reader: LogReader, topic: str, shards: int, span: Span) -> Traffic:
    """The traffic of a span. `Transient` when the broker does not answer."""
    partitions = range(shards)
    starts = await reader.starts(topic, partitions)
    tails = await reader.last(topic, partitions)
    ends = {p: max(starts[p], r.offset + 1 if r is not None else 0) for p, r in tails.items()}
    if span.until < FAR_MS:
        ends = await _received(reader, topic, starts, ends, span.until)
    if span.since > 0:
        starts = await _received(reader, topic, starts, ends, span.since)
    return Traffic(_last(starts, ends, span.most), ends)


async def pages(reader: LogReader, topic: str, traffic: Traffic) -> AsyncGenerator[list[RawRecord], None]:
    """The records, within a partition in order; what is posted meanwhile is not waited for."""
    left = {p: start for p, start in traffic.starts.items() if start < traffic.ends[p]}
    if not left:
        return
    async with aclosing(reader.behind(topic, left)) as found:
        async for page in found:
            yield [raw_record(record, FAR_MS) for record in page if record.offset < traffic.ends[record.partition]]
            for record in page:
                if record.offset >= traffic.ends[record.partition] - 1:
                    left.pop(record.partition, None)
            if not left:
                return


async def _received(
    reader: LogReader, topic: str, starts: Mapping[int, int], ends: Mapping[int, int], instant: int
) -> dict[int, int]:
    """The offset in each partition before which everything was received before the instant; found by halves, for the
    broker's index goes by the wall clock and not by product time."""
    low, high = dict(starts), dict(ends)
    while open_ := {p: (low[p] + high[p]) // 2 for p in low if low[p] < high[p]}:
        found = await reader.first(topic, open_)
        for p, middle in open_.items():
            record = found[p]
            if record is None or record.offset >= high[p] or raw_record(record, FAR_MS).received_at >= instant:
                high[p] = middle
            else:
                low[p] = record.offset + 1
    return low


def _last(starts: Mapping[int, int], ends: Mapping[int, int], most: int) -> dict[int, int]:
    """Where to begin so that about `most` records follow: as many in each partition, where it has them."""
    found: dict[int, int] = {}
    by_length = sorted(starts, key=lambda p: ends[p] - starts[p])
    for place, p in enumerate(by_length):
        share = most // (len(by_length) - place)
        taken = min(share, ends[p] - starts[p])
        found[p] = ends[p] - taken
        most -= taken
    return found
