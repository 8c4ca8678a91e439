"""Records reach a partition in the order given; a batch that was not acknowledged stops everything behind it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.errors import KafkaError, NotEnoughReplicasError

from shared.contracts.topics import Topic
from shared.kafka.sender import Record, Sender, SendFailed
from tests.support.ports import free_port
from tests.support.spine import Site


async def test_records_keep_their_order_across_batches(any_site: Site) -> None:
    """Far more than one batch holds: each is sent only when the one before it was acknowledged."""
    site = any_site
    sender = Sender(site.kafka, batch_bytes=4000)
    await sender.start()
    try:
        several = [Record(b"k", b"%05d" % n + b"x" * 200, [("h", b"%d" % n)]) for n in range(300)]
        assert await sender.send(site.topic(Topic.RAW), 0, several) == 299
        assert await sender.send(site.topic(Topic.RAW), 0, several[:1]) == 300
    finally:
        await sender.stop()
    found = await site.records(Topic.RAW, 0)
    assert [r.value[:5] for r in found] == [b"%05d" % n for n in range(300)] + [b"00000"]
    assert dict(found[7].headers) == {"h": b"7"}


async def test_calls_for_one_partition_queue_whole(any_site: Site) -> None:
    site = any_site
    sender = Sender(site.kafka, batch_bytes=1000)
    await sender.start()
    try:
        await asyncio.gather(
            *(
                sender.send(site.topic(Topic.RAW), 0, [Record(b"k", b"%d-%d" % (c, n) + b"x" * 100) for n in range(20)])
                for c in range(5)
            )
        )
    finally:
        await sender.stop()
    found = [r.value.rstrip(b"x") for r in await site.records(Topic.RAW, 0)]
    calls = [found[start : start + 20] for start in range(0, 100, 20)]
    assert all(len({value.split(b"-")[0] for value in call}) == 1 for call in calls)


async def test_nothing_behind_a_refused_batch_is_sent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """With batches in flight behind it, a refused one would leave a hole in a log that can never be mended."""
    sender = Sender(site.kafka, batch_bytes=1000)
    await sender.start()
    real = sender._producer.send_batch  # type: ignore[union-attr]
    sent: list[int] = []

    async def refusing(batch: Any, topic: str, *, partition: int) -> Any:
        sent.append(1)
        if len(sent) == 3:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            future.set_exception(NotEnoughReplicasError())
            return future
        return await real(batch, topic, partition=partition)

    monkeypatch.setattr(sender._producer, "send_batch", refusing)
    several = [Record(b"k", b"%03d" % n + b"x" * 300) for n in range(30)]
    try:
        with pytest.raises(SendFailed, match="NotEnoughReplicas"):
            await sender.send(site.topic(Topic.RAW), 0, several)
        assert len(sent) == 3
        kept = [r.value[:3] for r in await site.records(Topic.RAW, 0)]
        assert kept == [b"%03d" % n for n in range(len(kept))]
        assert 0 < len(kept) < 30
        await sender.send(site.topic(Topic.RAW), 0, several[len(kept) :])
    finally:
        await sender.stop()
    assert [r.value[:3] for r in await site.records(Topic.RAW, 0)] == [b"%03d" % n for n in range(30)]


async def test_nothing_to_send_is_nothing(site: Site) -> None:
    assert await site.sender.send(site.topic(Topic.RAW), 0, []) == -1


async def test_a_record_larger_than_a_batch_goes_alone(site: Site) -> None:
    """It must neither be dropped nor loop for ever."""
    sender = Sender(site.kafka, batch_bytes=1000)
    await sender.start()
    try:
        large = Record(b"k", b"y" * 20_000)
        async with asyncio.timeout(10):
            assert await sender.send(site.topic(Topic.RAW), 0, [Record(b"k", b"a"), large, Record(b"k", b"b")]) == 2
    finally:
        await sender.stop()
    assert [len(r.value) for r in await site.records(Topic.RAW, 0)] == [1, 20_000, 1]


async def test_a_broker_that_is_away_is_a_bad_moment() -> None:
    sender = Sender(f"127.0.0.1:{free_port()}", timeout_ms=500)
    with pytest.raises(SendFailed):
        await sender.start()
    with pytest.raises(SendFailed, match="not started"):
        await sender.send("t", 0, [Record(None, b"v")])
    assert not issubclass(SendFailed, KafkaError)
    await sender.stop()
