"""How committed rows reach their topics: in order, to the shard's own partition, again after any doubt.

The table is the truth; the queue here is what was committed since and not yet acknowledged. At most one
batch per topic and partition is unacknowledged; after a failure the same rows go again, in order. Readers drop
repeats by (gen, seq).
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Generic, TypeVar

import msgspec

from shared.kafka.sender import Record, Sender
from shared.process.crash import POINTS
from shared.process.errors import Transient
from shared.process.metrics import RELAY_PENDING, RELAYED, TRANSIENT
from shared.process.retry import backoff_seconds

log = logging.getLogger("perennial.relay")
R = TypeVar("R")

_NOTE_SECONDS = 0.5
_AT_ONCE = 2500
"""Rows made records of in one go, or twice as many: the loop is everyone's."""


class Published(msgspec.Struct, frozen=True, gc=False):
    """What one row becomes: records by topic name, in the shard's partition; `elsewhere`: (topic, partition, record)
    for another's."""

    seq: int
    records: list[tuple[str, Record]]
    elsewhere: tuple[str, int, Record] | None = None


class Relay(Generic[R]):
    """`publish` turns a row into records; `note` writes how far each shard was acknowledged."""

    def __init__(
        self,
        service: str,
        sender: Sender,
        publish: Callable[[R], Published],
        note: Callable[[Mapping[int, int]], Awaitable[None]],
        *,
        most_pending: int = 200_000,
    ) -> None:
        self._service = service
        self._sender = sender
        self._publish = publish
        self._note = note
        self._queues: dict[int, asyncio.Queue[list[R | Published]]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._acknowledged: dict[int, int] = {}
        self._pending = 0
        self._most = most_pending
        self._room = asyncio.Event()
        self._room.set()
        RELAYED.labels(service)
        RELAY_PENDING.labels(service)

    def own(self, shards: Iterable[int]) -> None:
        """Serve these shards and no others; queued rows of lost ones are dropped: their next owner reads
        them from the table."""
        wanted = set(shards)
        for shard in set(self._queues) - wanted:
            self._forget(shard)
        for shard in wanted - set(self._queues):
            self._queues[shard] = asyncio.Queue()
            self._tasks[shard] = asyncio.create_task(self._serve(shard), name=f"relay-{shard}")

    def disown_all(self) -> None:
        for shard in list(self._queues):
            self._forget(shard)

    def put(self, shard: int, rows: Iterable[R | Published]) -> None:
        queue = self._queues.get(shard)
        if queue is None:
            return
        several = list(rows)
        for start in range(0, len(several), _AT_ONCE):
            queue.put_nowait(several[start : start + _AT_ONCE])
        self._pending += len(several)
        RELAY_PENDING.labels(self._service).set(self._pending)
        if self._pending > self._most:
            self._room.clear()

    async def room(self) -> None:
        """Wait while too many rows are unacknowledged: the pipeline must not outrun the broker."""
        await self._room.wait()

    async def run(self) -> None:
        """Write down acknowledgements, a few times a second, until cancelled."""
        while True:
            await asyncio.sleep(_NOTE_SECONDS)
            for shard, task in self._tasks.items():
                if task.done():
                    raise RuntimeError(f"relay of shard {shard} ended") from task.exception()
            await self._note_acknowledged()

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        self.disown_all()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._note_acknowledged()

    async def _note_acknowledged(self) -> None:
        noted, self._acknowledged = self._acknowledged, {}
        if not noted:
            return
        try:
            await self._note(noted)
        except Transient:
            for shard, seq in noted.items():
                self._acknowledged[shard] = max(seq, self._acknowledged.get(shard, 0))

    def _forget(self, shard: int) -> None:
        self._tasks.pop(shard).cancel()
        queue, count = self._queues.pop(shard), 0
        while not queue.empty():
            count += len(queue.get_nowait())
        self._settle(count)

    def _settle(self, count: int) -> None:
        self._pending -= count
        RELAY_PENDING.labels(self._service).set(self._pending)
        if self._pending <= self._most // 2:
            self._room.set()

    async def _serve(self, shard: int) -> None:
        queue = self._queues[shard]
        while True:
            rows = await queue.get()
            while not queue.empty() and len(rows) < _AT_ONCE:
                rows += queue.get_nowait()
            last = 0
            by_place: defaultdict[tuple[str, int], list[Record]] = defaultdict(list)
            for row in rows:
                published = row if isinstance(row, Published) else self._publish(row)
                last = max(last, published.seq)
                for topic, record in published.records:
                    by_place[topic, shard].append(record)
                if published.elsewhere is not None:
                    topic, partition, record = published.elsewhere
                    by_place[topic, partition].append(record)
            try:
                await self._send_until_done(shard, by_place)
            finally:
                self._settle(len(rows))
            RELAYED.labels(self._service).inc(len(rows))
            self._acknowledged[shard] = max(last, self._acknowledged.get(shard, 0))

    async def _send_until_done(self, shard: int, waiting: dict[tuple[str, int], list[Record]]) -> None:
        attempt = 0
        while waiting:
            POINTS.passing("relay.before_send")
            results = await asyncio.gather(
                *(self._sender.send(topic, partition, records) for (topic, partition), records in waiting.items()),
                return_exceptions=True,
            )
            POINTS.passing("relay.after_send")
            for (topic, partition), result in zip(list(waiting), results, strict=True):
                if isinstance(result, Transient):
                    log.warning("relay: %s", result, extra={"fields": {"shard": shard, "topic": topic}})
                    TRANSIENT.labels(self._service).inc()
                elif isinstance(result, BaseException):
                    raise result
                else:
                    del waiting[topic, partition]
            if waiting:
                await asyncio.sleep(backoff_seconds(attempt))
                attempt += 1
