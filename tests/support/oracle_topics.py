"""How the oracle reads a topic from its first record to its last, on any broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

LONGEST_SECONDS = 60.0


class Seen(NamedTuple):
    """One record as it stands in the log."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


async def read(bootstrap: str, topic: str, partitions: int) -> dict[int, list[Seen]]:
    """Every record of the topic, by partition."""
    found: dict[int, list[Seen]] = {p: [] for p in range(partitions)}
    async for partition, record in _follow(bootstrap, topic, partitions):
        found[partition].append(record)
    return found


async def ends(bootstrap: str, topic: str, partitions: int, since: dict[int, int] | None = None) -> dict[int, int]:
    """One more than the last offset of each partition (0: empty); `since` are ends seen before."""
    found = dict.fromkeys(range(partitions), 0) | (since or {})
    async for partition, record in _follow(bootstrap, topic, partitions, since):
        found[partition] = record.offset + 1
    return found


async def _follow(
    bootstrap: str, topic: str, partitions: int, since: dict[int, int] | None = None
) -> AsyncIterator[tuple[int, Seen]]:
    consumer: AIOKafkaConsumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=None,
        enable_auto_commit=False,
        isolation_level="read_committed",
        fetch_max_wait_ms=20,
        max_partition_fetch_bytes=4_000_000,
    )
    await consumer.start()
    try:
        every = [TopicPartition(topic, p) for p in range(partitions)]
        consumer.assign(every)
        await consumer.seek_to_beginning(*every)
        for partition, end in (since or {}).items():
            if end > 0:
                consumer.seek(TopicPartition(topic, partition), end - 1)
        # the broker's index of ends may lag behind (embedded broker); a fetch at the end tells the truth
        proofs = dict.fromkeys(every, 0)
        marks = dict.fromkeys(every, 0)
        deadline = time.monotonic() + LONGEST_SECONDS
        while min(proofs.values(), default=2) < 2:
            assert time.monotonic() < deadline, f"{topic}: the end was not reached"
            for tp, records in (await consumer.getmany(timeout_ms=30)).items():
                for record in records:
                    yield (
                        tp.partition,
                        Seen(record.offset, record.timestamp, record.key, record.value, dict(record.headers)),
                    )
            for tp in every:
                highwater, mark = consumer.highwater(tp), consumer.last_poll_timestamp(tp) or 0
                if highwater is None or await consumer.position(tp) < highwater:
                    proofs[tp] = 0
                elif mark != marks[tp]:
                    proofs[tp] += 1
                marks[tp] = mark
    finally:
        await asyncio.wait({asyncio.ensure_future(consumer.stop())}, timeout=5)
