"""Which shards this process is to serve, and the records that follow a position in each.

One group topic per service decides ownership. The rebalance listener only marks: acquiring, seeking and
proving are the caller's, in its own task, because aiokafka swallows a listener's exceptions and may hand
over records fetched before a seek.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
)
from aiokafka.protocol.fetch import FetchRequest

from shared.kafka.clients import end, outside
from shared.kafka.held import Held, Reach, held
from shared.kafka.records import InRecord
from shared.process.clock import monotonic
from shared.process.errors import Transient

_SHOW_SECONDS = 5.0
_STARVED_POLLS = 8
_LONGEST_WAIT_MS = 1000


class Reassigned(Exception):
    """The group was rebalanced meanwhile: what was fetched is void, every shard must be acquired again."""


class Polled(NamedTuple):
    """Records by shard, and the position behind them for every shard that moved, were it only over holes
    that aborted transactions left."""

    records: dict[int, list[InRecord]]
    positions: dict[int, int]


def client_id(pid: int) -> str:
    """What the consumers of a process are known by at the broker."""
    return f"perennial-{pid}"


class ShardConsumer:
    def __init__(
        self,
        bootstrap: str,
        topic: str,
        group: str,
        *,
        instance: str = "",
        fetch_every_ms: int = 22,
        session_timeout_ms: int = 30_000,
        max_bytes_per_partition: int = 1_048_576,
    ) -> None:
        self.topic = topic
        self.generation = 0
        self._given_up = False
        self._starved = 0
        self._positions: dict[int, int] = {}
        self._held = Held(topic)
        self._shown_at = 0.0
        self._showing: asyncio.Task[None] | None = None
        self._group = group
        self._consumer: AIOKafkaConsumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=group,
            client_id=client_id(os.getpid()),
            # a static member that is back within its session takes its shards over at once
            group_instance_id=f"{group}.{instance}" if instance else None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            session_timeout_ms=session_timeout_ms,
            heartbeat_interval_ms=max(500, session_timeout_ms // 10),
            rebalance_timeout_ms=60_000,
            max_poll_interval_ms=600_000,
            # the embedded broker reads for no longer than it may wait, however much there is
            fetch_max_wait_ms=10,
            fetch_min_bytes=1,
            max_partition_fetch_bytes=max_bytes_per_partition,
            retry_backoff_ms=100,
        )
        _pace(self._consumer, fetch_every_ms / 1000)

    async def start(self) -> None:
        try:
            self._consumer.subscribe([self.topic], listener=_Marks(self))
            await self._consumer.start()
        except KafkaError as error:
            await self.stop()
            raise Transient(f"kafka: {error}") from error

    async def stop(self) -> None:
        await end(self._consumer)

    def assigned(self) -> frozenset[int]:
        """What the group gave us last. While it is rebalanced that is served on, but not if it had given us up: then
        others serve it already."""
        return frozenset() if self._given_up else frozenset(tp.partition for tp in self._consumer.assignment())

    def reassigned(self, *, revoked: bool) -> None:
        self.generation += 1
        self._held.forget()
        # aiokafka tells nobody that the group gave a member up; it only forgets the id the member was known by
        self._given_up = revoked and not self._consumer._coordinator.member_id  # noqa: SLF001

    def seek(self, shard: int, offset: int) -> None:
        """Read `shard` from `offset` on. `Reassigned` if it is no longer assigned."""
        try:
            self._consumer.seek(self._tp(shard), offset)
            self._positions[shard] = offset
        except IllegalStateError as error:
            raise Reassigned from error

    async def fetch(self, shards: Iterable[int], *, timeout_ms: int, max_records: int) -> Polled:
        """What follows the positions of `shards`. `LogReplaced` when a position lies outside its log."""
        generation = self.generation
        partitions = [self._tp(shard) for shard in shards]
        try:
            found = await self._consumer.getmany(*partitions, timeout_ms=timeout_ms, max_records=max_records)
            if generation != self.generation:
                raise Reassigned  # a new assignment has no positions yet: to ask for one would wait for ever
            positions = {tp.partition: await self._consumer.position(tp) for tp in partitions}
            reached = {tp.partition: self._reach(tp, positions[tp.partition]) for tp in partitions}
            self._held.note(reached)
            if sum(map(len, found.values())) < max_records:
                self._wait_longer_if_starved(reached[tp.partition] for tp in partitions if tp not in found)
        except OffsetOutOfRangeError as error:
            raise outside(self.topic, error) from error
        except (IllegalStateError, AssertionError, NoOffsetForPartitionError) as error:
            raise Reassigned from error
        except RecordTooLargeError as error:
            raise Transient(f"{self.topic}: {error}") from error
        except KafkaError as error:
            raise Transient(f"kafka: {type(error).__name__}: {error}") from error
        if generation != self.generation:
            raise Reassigned
        moved = {shard: at for shard, at in positions.items() if at != self._positions.get(shard)}
        self._positions.update(moved)
        return Polled({tp.partition: records for tp, records in found.items() if records}, moved)

    def _reach(self, tp: TopicPartition, position: int) -> Reach:
        return Reach(position, self._consumer.last_stable_offset(tp), self._consumer.highwater(tp))

    def _wait_longer_if_starved(self, silent: Iterable[Reach]) -> None:
        """The embedded broker reads for no longer than it may wait, and the longer its logs, the longer it reads: an
        answer without what lies behind a position is one that came too early, unless a transaction holds that back."""
        starved = any((reach.highwater or 0) > reach.position and not held(reach) for reach in silent)
        self._starved = self._starved + 1 if starved else 0
        if self._starved >= _STARVED_POLLS:
            self._starved = 0
            fetcher = self._consumer._fetcher  # noqa: SLF001
            fetcher._fetch_max_wait_ms = min(2 * fetcher._fetch_max_wait_ms, _LONGEST_WAIT_MS)  # noqa: SLF001

    def at_end(self, shard: int, position: int) -> tuple[bool, int]:
        """Whether `position` has reached the end as last told by the broker, and a mark that changes with
        every answer of the broker for this shard."""
        tp = self._tp(shard)
        try:
            highwater = self._consumer.highwater(tp)
            polled = self._consumer.last_poll_timestamp(tp)
        except (IllegalStateError, AssertionError):
            return False, 0
        return highwater is not None and position >= highwater, polled or 0

    def lag(self) -> int:
        """Records between the positions read and the ends as last told by the broker; unknown ends count nothing."""
        behind = 0
        for shard, position in self._positions.items():
            try:
                highwater = self._consumer.highwater(self._tp(shard))
            except (IllegalStateError, AssertionError):
                continue  # no longer assigned
            behind += max(0, (highwater or 0) - position)
        return behind

    def held_seconds(self) -> float:
        """How long an open transaction has held records back from the shard that waits longest; 0 where none does."""
        return self._held.seconds()

    def show(self, positions: Mapping[int, int]) -> None:
        """Tell the broker where we are, in the background and every few seconds: for lag dashboards only,
        never read back."""
        now = monotonic()
        if not positions or now - self._shown_at < _SHOW_SECONDS:
            return
        self._shown_at = now
        self._showing = asyncio.create_task(self._commit(dict(positions)))

    async def _commit(self, positions: dict[int, int]) -> None:
        try:
            async with asyncio.timeout(2):
                await self._consumer.commit({self._tp(shard): offset for shard, offset in positions.items()})
        except (KafkaError, TimeoutError, IllegalStateError):
            return

    def _tp(self, shard: int) -> TopicPartition:
        return TopicPartition(self.topic, shard)


def _pace(consumer: AIOKafkaConsumer, seconds: float) -> None:
    """Have `consumer` fetch from each node at most once in `seconds`, so that records gather.

    A fetch names every partition and is dear on both sides. Where the broker does the waiting (`fetch_min_bytes`),
    it looks at every partition again for each record that arrives.
    """
    client = consumer._client  # noqa: SLF001
    send = client.send
    due: defaultdict[int, float] = defaultdict(float)

    async def paced(node_id: int, request: object, **more: object) -> object:
        if isinstance(request, FetchRequest):
            await asyncio.sleep(due[node_id] - monotonic())
            due[node_id] = monotonic() + seconds
        return await send(node_id, request, **more)

    client.send = paced


class _Marks(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, consumer: ShardConsumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self._consumer.reassigned(revoked=True)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._consumer.reassigned(revoked=False)
