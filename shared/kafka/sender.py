"""How records reach a partition in order: go-back-N, at most one unacknowledged batch per partition.

After a failure nothing behind the failed batch was sent; the caller resumes from its durable point. A
failed batch may still have been appended: readers drop repeats by number.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from shared.kafka.clients import end
from shared.process.errors import Transient


class Record(msgspec.Struct, frozen=True, gc=False):
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]] = []


class SendFailed(Transient):
    """The broker did not acknowledge; whether the batch was appended is not known."""


class Sender:
    """One producer. `send` may be called for many partitions at once; calls for one partition queue."""

    def __init__(self, bootstrap: str, *, batch_bytes: int = 900_000, timeout_ms: int = 10_000) -> None:
        self._options: dict[str, Any] = {
            "bootstrap_servers": bootstrap,
            "acks": "all",
            "enable_idempotence": False,
            "max_batch_size": batch_bytes,
            "max_request_size": 8_000_000,
            "linger_ms": 0,
            "request_timeout_ms": timeout_ms,
            "retry_backoff_ms": 50,
        }
        self._timeout = timeout_ms / 1000
        self._producer: AIOKafkaProducer | None = None
        self._turns: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def start(self) -> None:
        producer = AIOKafkaProducer(**self._options)
        try:
            await producer.start()
        except KafkaError as error:
            await end(producer)
            raise SendFailed(f"kafka: {error}") from error
        self._producer = producer

    async def stop(self) -> None:
        if self._producer is not None:
            await end(self._producer)
            self._producer = None

    async def send(self, topic: str, partition: int, records: Sequence[Record]) -> int:
        """Append `records` in order; the offset of the last one. `SendFailed` at the first refusal."""
        last = -1
        async with self._turns[topic, partition]:
            start = 0
            while start < len(records):
                start, last = await self._send_batch(topic, partition, records, start)
        return last

    async def _send_batch(self, topic: str, partition: int, records: Sequence[Record], start: int) -> tuple[int, int]:
        producer = self._producer
        if producer is None:
            raise SendFailed("the producer is not started")
        batch = producer.create_batch()
        end = start
        for record in records[start:] if start else records:
            if batch.append(timestamp=None, key=record.key, value=record.value, headers=record.headers) is None:
                break
            end += 1
        batch.close()
        try:
            async with asyncio.timeout(self._timeout * 2):
                future = await producer.send_batch(batch, topic, partition=partition)
                told = await future
        except (KafkaError, TimeoutError, AssertionError) as error:
            raise SendFailed(f"kafka: {topic}[{partition}]: {type(error).__name__}: {error}") from error
        return end, told.offset + (end - start) - 1
