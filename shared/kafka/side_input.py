"""What the owner of a shard reads besides its service's group topic: the shard's partition of another topic.

It is assigned by hand to whoever owns the shard: two topics in one group may be split between members. The positions
are the owner's, committed with what was made of the records.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from shared.data.shard_owner import Position
from shared.kafka.clients import begin_reading, end, outside
from shared.kafka.log_reader import LogReader
from shared.kafka.proof import prove
from shared.kafka.shard_consumer import Polled
from shared.process.errors import Transient


class SideInput:
    """One consumer without a group. All calls come from the task that owns the shards."""

    def __init__(self, bootstrap: str, topic: str, reader: LogReader) -> None:
        self.topic = topic
        self._bootstrap = bootstrap
        self._reader = reader
        self._owned: frozenset[int] = frozenset()
        self._consumer: AIOKafkaConsumer | None = None

    async def start(self) -> None:
        consumer = await begin_reading(self._bootstrap, retry_backoff_ms=100)
        try:
            # a connection that is being made while the consumer is stopped is left open
            for broker in consumer._client.cluster.brokers():  # noqa: SLF001
                await consumer._client.ready(broker.nodeId)  # noqa: SLF001
        except KafkaError as error:
            await end(consumer)
            raise Transient(f"kafka: {error}") from error
        self._consumer = consumer

    async def stop(self) -> None:
        if self._consumer is not None:
            await end(self._consumer)
            self._consumer = None

    async def own(self, positions: Mapping[int, Position]) -> None:
        """Read these shards and no others from now on. `LogReplaced` unless the log holds what was read of it."""
        starts = await prove(self._reader, self.topic, positions)
        assert self._consumer is not None
        self._consumer.assign([self._tp(shard) for shard in positions])
        for shard, position in positions.items():
            self._consumer.seek(self._tp(shard), max(position.next_offset, starts[shard]))
        self._owned = frozenset(positions)

    def disown(self) -> None:
        # the consumer stays assigned, and fetches no more than its buffer holds: to take that back and give it anew at
        # each doubt leaves connections open
        self._owned = frozenset()

    async def fetch(self, shards: Collection[int], *, max_records: int) -> Polled:
        """What has come of `shards` and was not handed over yet; does not wait."""
        wanted = [self._tp(shard) for shard in shards if shard in self._owned]
        if not wanted:
            return Polled({}, {})
        assert self._consumer is not None
        try:
            found = await self._consumer.getmany(*wanted, timeout_ms=0, max_records=max_records)
        except OffsetOutOfRangeError as error:
            raise outside(self.topic, error) from error
        except KafkaError as error:
            raise Transient(f"kafka: {type(error).__name__}: {error}") from error
        records = {tp.partition: several for tp, several in found.items() if several}
        return Polled(records, {shard: several[-1].offset + 1 for shard, several in records.items()})

    def read_up(self, shard: int, position: int) -> bool:
        """Whether `position` has reached the end of the shard's log as the broker told it since the shard is owned."""
        if shard not in self._owned or self._consumer is None:
            return False
        highwater = self._consumer.highwater(self._tp(shard))
        return highwater is not None and position >= highwater

    def _tp(self, shard: int) -> TopicPartition:
        return TopicPartition(self.topic, shard)
