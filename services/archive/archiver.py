"""The way of a record into the archive: what waits long enough is read from its topic and written, partition by
partition.

The log itself is the buffer: between two files nothing is held, so that there is nothing to lose. Where a partition
goes on is what its files' names say, and what they hold last must be in the topic still, or be gone by its retention.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import msgspec

from services.archive import segments
from services.archive.folder import File, Folder
from services.archive.segments import Archived, Head
from shared.contracts.identifiers import record_digest
from shared.data.control import installation
from shared.data.db import Pool, transaction
from shared.kafka.log_reader import LogReader
from shared.process.clock import Clock, monotonic
from shared.process.crash import POINTS
from shared.process.errors import LogReplaced, Transient
from shared.process.http import Health
from shared.process.metrics import ARCHIVE_AGE, ARCHIVE_LAG, ARCHIVE_LOST, ARCHIVE_RECORDS, TRANSIENT
from shared.process.retry import backoff_seconds

log = logging.getLogger("perennial.archive")

TICKS = "ticks"
RULES = "rules"
"""Folders beside the topics': the segmenter's ticks by shard, whose offset is the tick's id, and the rules versions."""

_PAGE = 20_000
_NEW_TICKS = """
SELECT tick_id AS number, seq, at_src, as_of, rules_version FROM audience.tick
WHERE shard = $1 AND log_id = $2 AND tick_id > $3 ORDER BY tick_id LIMIT $4
"""
_NEW_RULES = """
SELECT version AS number, pack, body, note, extract(epoch FROM created_at)::bigint AS created_at FROM control.rules
WHERE version > $1 ORDER BY version LIMIT $2
"""


@dataclass(frozen=True)
class Measure:
    """When what waits is written, and how large files become."""

    seconds: float
    records: int
    file_bytes: int
    look_seconds: float


class Archiver:
    def __init__(
        self,
        *,
        reader: LogReader,
        pool: Pool,
        folder: Folder,
        topics: Sequence[str],
        shards: int,
        measure: Measure,
        clock: Clock,
        health: Health,
    ) -> None:
        self._reader, self._pool, self._folder = reader, pool, folder
        self._topics, self._shards, self._measure = topics, shards, measure
        self._clock, self._health = clock, health
        self._next: dict[tuple[str, int], int] = {}
        self._newest: dict[tuple[str, int], File] = {}
        self._oldest: dict[str, int] = {}
        self._tables_at = 0.0
        TRANSIENT.labels("archive")
        for topic in topics:
            for metric in (ARCHIVE_LAG, ARCHIVE_AGE, ARCHIVE_LOST, ARCHIVE_RECORDS):
                metric.labels(topic)
            ARCHIVE_AGE.labels(topic).set_function(partial(self._age, topic))

    async def run(self) -> None:
        """Archive for ever, while nobody else does in the same folder."""
        attempt = 0
        while True:
            self._beat()
            try:
                with self._folder.sole() as alone:
                    if alone:
                        self._health.ready()
                        await self.round()
                    else:
                        # files of another's may have come: where to go on is read anew
                        self._next.clear()
                        self._health.not_ready = f"another archiver writes to {self._folder.path}"
                attempt = 0
                await asyncio.sleep(self._measure.look_seconds)
            except Transient as error:
                TRANSIENT.labels("archive").inc()
                log.warning("%s", error)
                await asyncio.sleep(backoff_seconds(attempt))
                attempt += 1

    async def round(self) -> None:
        """Write what waits long enough. Only under the folder's lock. `LogReplaced` when a topic is not the one whose
        files are there."""
        async with transaction(self._pool) as connection:
            found = (await installation(connection)).log_id
        if found != self._folder.log_id:
            raise LogReplaced(f"the log is {found!r} by now, and was {self._folder.log_id!r} when this process began")
        if not self._next and (left := await asyncio.to_thread(self._folder.clean)):
            log.info("unfinished files taken away", extra={"fields": {"files": left}})
        for place, file in self._newest.items():
            if not file.path.exists():  # the disk was another one
                self._next.pop(place, None)
        wrote = [await self._topic(topic) for topic in self._topics]
        # the topics first: ticks behind what is archived of the events do no harm, the other way round would
        if any(wrote) or not self._tables_at or monotonic() - self._tables_at >= self._measure.seconds:
            await self._tables()

    # -- topics

    async def _topic(self, topic: str) -> bool:
        """Write what waits long enough of a topic; whether anything did."""
        starts = await self._reader.starts(topic, range(self._shards))
        ends = await self._reader.ends(topic, range(self._shards))
        new = [p for p in starts if (topic, p) not in self._next]
        await self._resume(topic, new)
        for p, start in starts.items():
            wanted = self._next[topic, p]
            if start > wanted:
                lost = start - wanted
                log.error(
                    "retention took records that were not archived; the archive has a gap",
                    extra={"fields": {"topic": topic, "partition": p, "from": wanted, "to": start - 1}},
                )
                ARCHIVE_LOST.labels(topic).inc(lost)
                self._next[topic, p] = start
        # `ends` may be too low: whether something waits, its being there says
        first = await self._reader.first(topic, {p: self._next[topic, p] for p in starts})
        waiting = {p: record.timestamp for p, record in first.items() if record is not None}
        self._oldest[topic] = min(waiting.values(), default=0)
        long_ago = self._clock.real_ms() - self._measure.seconds * 1000
        left: list[int] = []
        for p, came_at in waiting.items():
            if came_at <= long_ago or ends[p] - self._next[topic, p] >= self._measure.records:
                await self._partition(topic, p, ends[p])
            else:
                left.append(came_at)
        ARCHIVE_LAG.labels(topic).set(sum(max(0, end - self._next[topic, p]) for p, end in ends.items()))
        self._oldest[topic] = min(left, default=0)
        return len(left) < len(waiting)

    def _age(self, topic: str) -> float:
        """Asked at each look: it grows while nothing is archived, whatever the cause."""
        oldest = self._oldest.get(topic, 0)
        return max(0, self._clock.real_ms() - oldest) / 1000 if oldest else 0.0

    async def _resume(self, topic: str, partitions: Sequence[int]) -> None:
        """Go on behind the files that are there. A partition without any begins where the topic does, at the earliest
        offset it ever had if it still has that."""
        last: dict[int, Archived] = {}
        for p in partitions:
            files = self._folder.files(topic, p)
            self._next[topic, p] = files[-1].last + 1 if files else 0
            self._newest.pop((topic, p), None)
            record = await asyncio.to_thread(files[-1].end) if files else None
            if record is not None:
                last[p] = record
        if not last:
            return
        starts = await self._reader.starts(topic, last)
        found = await self._reader.at(topic, {p: record.offset for p, record in last.items()})
        for p, record in last.items():
            there = found[p]
            if there is None and record.offset < starts[p]:
                continue
            if there is None or record_digest(there.key, there.value) != segments.digest(record):
                self._next.clear()
                raise LogReplaced(
                    f"{topic}[{p}] no longer holds at offset {record.offset} the record that was archived from there:"
                    f" the topic was re-created. Restore it, or archive to another folder than {self._folder.path}."
                )

    async def _partition(self, topic: str, p: int, end: int) -> None:
        """Write what is there up to `end`, and what came with it in the last page."""
        lines: list[bytes] = []
        size, last = 0, -1
        async with aclosing(self._reader.behind(topic, {p: self._next[topic, p]})) as pages:
            async for page in pages:
                self._beat()
                for record in page:
                    lines.append(segments.line(record))
                    size, last = size + len(lines[-1]), record.offset
                    if size >= self._measure.file_bytes:
                        await self._write(topic, p, last, lines)
                        lines, size = [], 0
                if last >= end - 1:
                    break
        if lines:
            await self._write(topic, p, last, lines)

    # -- tables

    async def _tables(self) -> None:
        """The ticks and rules versions that were committed since."""
        for shard in range(self._shards):
            await self._rows(TICKS, shard, _NEW_TICKS, shard, self._folder.log_id)
        await self._rows(RULES, 0, _NEW_RULES)
        self._tables_at = monotonic()

    async def _rows(self, name: str, partition: int, query: str, *which: object) -> None:
        """Numbers rise in the order of commits: one writer at a time has the shard, or the table of rules."""
        while True:
            after = self._folder.next_offset(name, partition) or 0
            async with transaction(self._pool) as connection:
                rows = await connection.fetch(query, *which, after - 1, _PAGE)
            if not rows:
                return
            told = [dict(row) for row in rows]
            records = [Archived(partition, row.pop("number"), 0, None, msgspec.json.encode(row)) for row in told]
            self._next[name, partition] = after
            await self._write(name, partition, records[-1].offset, [segments.line(record) for record in records])

    async def _write(self, topic: str, p: int, last: int, lines: list[bytes]) -> None:
        head = Head(segments.FORMAT, self._folder.log_id, topic, p, self._next[topic, p], last)
        packed = await asyncio.to_thread(segments.pack, head, lines)
        file = await asyncio.to_thread(self._folder.write, head, packed)
        POINTS.passing("archive.after_write")
        self._next[topic, p], self._newest[topic, p] = last + 1, file
        if topic in self._topics:
            ARCHIVE_RECORDS.labels(topic).inc(len(lines))

    def _beat(self) -> None:
        self._health.beat("archive", within_seconds=60 + self._measure.look_seconds)
