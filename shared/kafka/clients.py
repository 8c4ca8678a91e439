"""How clients of the broker begin and end, whatever they are for."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from shared.process.errors import LogReplaced, Transient


async def begin_reading(bootstrap: str, **options: Any) -> AIOKafkaConsumer:
    """A started consumer without a group: whoever has it says what it reads, and from where. `Transient` when the
    broker is not there."""
    consumer: AIOKafkaConsumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        # the embedded broker reads for no longer than it may wait
        fetch_max_wait_ms=100,
        **options,
    )
    try:
        await consumer.start()
    except KafkaError as error:
        await end(consumer)
        raise Transient(f"kafka: {error}") from error
    return consumer


async def end(client: AIOKafkaConsumer | AIOKafkaProducer) -> None:
    """Stop it. To flush, or to leave a group, it would wait for ever while the broker is down: five seconds must do."""
    await asyncio.wait({asyncio.ensure_future(client.stop())}, timeout=5)


def outside(topic: str, error: OffsetOutOfRangeError) -> LogReplaced:
    """What it means that the broker has nothing at the positions it was asked for."""
    positions = {tp.partition: offset for tp, offset in error.args[0].items()}
    return LogReplaced(
        f"{topic}: positions {positions} lie outside the log;"
        " the topic was re-created or truncated, or retention overtook this service"
    )
