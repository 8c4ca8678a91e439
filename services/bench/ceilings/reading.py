"""How a ceiling reads a topic: every partition by hand from its beginning, as much as the client brings at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition


async def opened(stack: AsyncExitStack, setup: dict[str, Any]) -> tuple[AIOKafkaConsumer, AIOKafkaProducer]:
    """A consumer of `source`, and a producer whose batches every copy acknowledges."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=setup["kafka"], enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=20
    )
    await consumer.start()
    stack.push_async_callback(consumer.stop)
    consumer.assign([TopicPartition(setup["source"], p) for p in range(setup["partitions"])])
    producer = AIOKafkaProducer(
        bootstrap_servers=setup["kafka"], acks="all", linger_ms=0, max_batch_size=900_000, max_request_size=8_000_000
    )
    await producer.start()
    stack.push_async_callback(producer.stop)
    return consumer, producer


async def polls(consumer: AIOKafkaConsumer, events: int, gather: int) -> AsyncIterator[list[Any]]:
    """The next `events` records, some `gather` at a time (fewer where that is all there is)."""
    left = events
    while left:
        found: list[Any] = []
        while len(found) < min(gather, left):
            polled = await consumer.getmany(timeout_ms=20, max_records=min(gather, left) - len(found))
            if not polled and found:
                break
            for records in polled.values():
                found += records
        left -= len(found)
        yield found


async def send(
    producer: AIOKafkaProducer, topic: str, partition: int, values: list[tuple[bytes | None, bytes]]
) -> None:
    """One partition's records, in as few batches as they fit in, one after the other."""
    start = 0
    while start < len(values):
        batch, end = producer.create_batch(), start
        for key, value in values[start:]:
            if batch.append(timestamp=None, key=key, value=value) is None:
                break
            end += 1
        batch.close()
        await (await producer.send_batch(batch, topic, partition=partition))
        start = end
