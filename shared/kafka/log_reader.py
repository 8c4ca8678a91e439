"""What stands at an offset, what stands last, and what stands behind an offset in a partition — asked by hand,
outside any group."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Iterable, Mapping
from typing import TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from shared.kafka.clients import begin_reading, end
from shared.kafka.records import InRecord
from shared.process.clock import monotonic
from shared.process.errors import Transient

T = TypeVar("T")

_LOOK_BACK = (1, 64, 4096)
"""How far before the end the last record is looked for: aborted transactions leave holes."""
_PAGE = 5000


class LogReader:
    """One consumer without a group. Calls queue; `Transient` when the broker does not answer in time."""

    def __init__(self, bootstrap: str, timeout_seconds: float = 15.0) -> None:
        self._bootstrap = bootstrap
        self._timeout = timeout_seconds
        self._consumer: AIOKafkaConsumer | None = None
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        self._consumer = await begin_reading(self._bootstrap, request_timeout_ms=int(self._timeout * 1000))

    async def stop(self) -> None:
        if self._consumer is not None:
            await end(self._consumer)
            self._consumer = None

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has; 0 when it does not exist."""
        assert self._consumer is not None
        async with self._turn:
            await self._consumer._client.force_metadata_update()  # noqa: SLF001
            found = self._consumer._client.cluster.partitions_for_topic(topic)  # noqa: SLF001
            return len(found or ())

    async def at(self, topic: str, offsets: Mapping[int, int]) -> dict[int, InRecord | None]:
        """The record at each partition's offset; None where there is none (any more)."""
        found = await self.first(topic, offsets)
        return {p: r if r is not None and r.offset == offsets[p] else None for p, r in found.items()}

    async def first(self, topic: str, offsets: Mapping[int, int]) -> dict[int, InRecord | None]:
        """The first record at or behind each partition's offset; None where none follows, or the log begins later."""
        async with self._turn:
            return await self._guard(self._first_from(topic, offsets))

    async def last(self, topic: str, partitions: Iterable[int]) -> dict[int, InRecord | None]:
        """The last record of each partition; None for an empty one."""
        wanted = set(partitions)
        answer: dict[int, InRecord | None] = {}
        async with self._turn:
            for look_back in _LOOK_BACK:
                if not wanted:
                    break
                found = await self._guard(self._last_within(topic, wanted, look_back))
                answer.update(found)
                wanted -= {p for p, r in found.items() if r is not None}
        return answer

    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """The end offset of each partition, as the broker's index tells it (a lower bound)."""
        async with self._turn:
            return await self._guard(self._ends(topic, partitions))

    async def starts(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """The first offset still kept, of each partition."""
        async with self._turn:
            return await self._guard(self._starts(topic, partitions))

    async def behind(self, topic: str, offsets: Mapping[int, int]) -> AsyncGenerator[list[InRecord], None]:
        """Every record from each partition's offset up to its end, in pages; the order holds within a partition.

        The offsets lie between start and end. Nothing else can be asked before the last page was taken.
        """
        async with self._turn:
            waiting = {TopicPartition(topic, p) for p in offsets}
            if waiting:
                self._assign(topic, offsets)
            try:
                while waiting:
                    page, waiting = await self._heard(self._page(waiting))
                    if page:
                        yield page
            finally:
                if self._consumer is not None:
                    self._consumer.unsubscribe()

    async def _page(self, waiting: set[TopicPartition]) -> tuple[list[InRecord], set[TopicPartition]]:
        """Some of the records that follow, and the partitions whose end is not reached; waits until there is news."""
        consumer = self._consumer
        assert consumer is not None
        while True:
            found = await consumer.getmany(*waiting, timeout_ms=50, max_records=_PAGE)
            left = {tp for tp in waiting if not await self._at_end(consumer, tp)}
            page = [record for records in found.values() for record in records]
            if page or left != waiting:
                return page, left

    @staticmethod
    async def _at_end(consumer: AIOKafkaConsumer, tp: TopicPartition) -> bool:
        highwater, polled = consumer.highwater(tp), consumer.last_poll_timestamp(tp)
        return highwater is not None and polled is not None and await consumer.position(tp) >= highwater

    async def _heard(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout):
                return await work
        except (KafkaError, TimeoutError, AssertionError) as error:
            raise Transient(f"kafka: {type(error).__name__}: {error}") from error

    async def _guard(self, work: Awaitable[T]) -> T:
        try:
            return await self._heard(work)
        finally:
            if self._consumer is not None:
                self._consumer.unsubscribe()  # an assigned consumer goes on fetching

    async def _ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        assert self._consumer is not None
        found = await self._consumer.end_offsets([TopicPartition(topic, p) for p in partitions])
        return {tp.partition: offset for tp, offset in found.items()}

    async def _starts(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        assert self._consumer is not None
        found = await self._consumer.beginning_offsets([TopicPartition(topic, p) for p in partitions])
        return {tp.partition: offset for tp, offset in found.items()}

    async def _first_from(self, topic: str, offsets: Mapping[int, int]) -> dict[int, InRecord | None]:
        """First record at or behind each offset; None once the end is reached without one."""
        consumer = self._assign(topic, offsets)
        answer: dict[int, InRecord | None] = {}
        while len(answer) < len(offsets):
            waiting = [TopicPartition(topic, p) for p in offsets if p not in answer]
            for tp, records in (await self._poll(consumer, waiting, answer)).items():
                if records:
                    answer.setdefault(tp.partition, records[0])
            for tp in waiting:
                highwater = consumer.highwater(tp)
                # the position passes over what aborted transactions left, to an end without a record
                if tp.partition not in answer and highwater is not None and await consumer.position(tp) >= highwater:
                    answer[tp.partition] = None
        return answer

    async def _last_within(self, topic: str, partitions: set[int], look_back: int) -> dict[int, InRecord | None]:
        ends = await self._ends(topic, partitions)
        starts = await self._starts(topic, partitions)
        offsets = {p: max(starts[p], ends[p] - look_back) for p in partitions}
        consumer = self._assign(topic, offsets)
        answer: dict[int, InRecord | None] = dict.fromkeys(partitions)
        waiting = {TopicPartition(topic, p) for p in partitions}
        out_of_range: dict[int, InRecord | None] = {}
        asked = monotonic()
        while waiting:
            for tp, records in (await self._poll(consumer, list(waiting), out_of_range)).items():
                if records:
                    answer[tp.partition] = records[-1]
            for tp in list(waiting):
                if tp.partition in out_of_range or await self._at_end(consumer, tp):
                    waiting.discard(tp)
            if waiting and monotonic() - asked > self._timeout:
                raise TimeoutError(f"{topic}: no answer for partitions {[tp.partition for tp in waiting]}")
        return answer

    def _assign(self, topic: str, offsets: Mapping[int, int]) -> AIOKafkaConsumer:
        consumer = self._consumer
        assert consumer is not None
        consumer.assign([TopicPartition(topic, p) for p in offsets])
        for partition, offset in offsets.items():
            consumer.seek(TopicPartition(topic, partition), max(0, offset))
        return consumer

    @staticmethod
    async def _poll(
        consumer: AIOKafkaConsumer, waiting: list[TopicPartition], missing: dict[int, InRecord | None]
    ) -> dict[TopicPartition, list[InRecord]]:
        try:
            found: dict[TopicPartition, list[InRecord]] = await consumer.getmany(*waiting, timeout_ms=50)
            return found
        except OffsetOutOfRangeError as error:
            for tp in error.args[0]:
                missing[tp.partition] = None
            return {}
