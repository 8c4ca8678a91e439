"""The raw records at some offsets of a partition, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import aclosing

from shared.kafka.log_reader import LogReader
from shared.kafka.records import InRecord

_NEAR = 500
"""Offsets no further apart are read in one go."""


async def raw_at(reader: LogReader, topic: str, partition: int, offsets: Sequence[int]) -> dict[int, InRecord]:
    """The records that are still there, by offset. `Transient` when the broker does not answer."""
    start = (await reader.starts(topic, [partition]))[partition]
    kept = sorted(offset for offset in set(offsets) if offset >= start)
    found: dict[int, InRecord] = {}
    for run in _runs(kept):
        wanted = set(run)
        if len(run) == 1:
            record = (await reader.at(topic, {partition: run[0]}))[partition]
            if record is not None:
                found[record.offset] = record
            continue
        async with aclosing(reader.behind(topic, {partition: run[0]})) as pages:
            async for page in pages:
                found.update({record.offset: record for record in page if record.offset in wanted})
                if page[-1].offset >= run[-1]:
                    break
    return found


def _runs(offsets: Sequence[int]) -> Iterator[list[int]]:
    run: list[int] = []
    for offset in offsets:
        if run and offset - run[-1] > _NEAR:
            yield run
            run = []
        run.append(offset)
    if run:
        yield run
