"""What stands at an offset, and what stands last: on both brokers, also where the log has holes or is empty."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaProducer

from shared.contracts.topics import Topic
from shared.kafka.log_reader import LogReader
from shared.kafka.sender import Record
from shared.process.errors import Transient
from tests.support.ports import free_port
from tests.support.spine import SHARDS, Site


async def test_what_stands_where(any_site: Site) -> None:
    site, topic = any_site, any_site.topic(Topic.RAW)
    await site.produce(Topic.RAW, 0, *(Record(b"k", b"%d" % n) for n in range(10)))
    found = await site.log.last(topic, range(SHARDS))
    assert found[0] is not None
    assert (found[0].offset, found[0].value) == (9, b"9")
    assert found[1] is None
    at = await site.log.at(topic, {0: 4})
    assert at[0] is not None
    assert (at[0].offset, at[0].key, at[0].value) == (4, b"k", b"4")
    assert await site.log.at(topic, {0: 10}) == {0: None}
    assert await site.log.at(topic, {0: 5000}) == {0: None}
    assert await site.log.at(topic, {1: 0}) == {1: None}
    assert await site.log.starts(topic, range(SHARDS)) == {0: 0, 1: 0}
    assert (await site.log.ends(topic, [0]))[0] <= 10
    assert await site.log.partitions(topic) == SHARDS
    assert await site.log.partitions("no-such-topic") == 0


async def test_the_last_record_is_found_also_right_after_it_was_written(any_site: Site) -> None:
    """Ingest resumes by it: one record too early, and a decision is made twice under one number."""
    site = any_site
    for n in range(15):
        await site.produce(Topic.EVENTS, 0, Record(b"k", b"%d" % n))
        found = (await site.log.last(site.topic(Topic.EVENTS), [0, 1]))[0]
        assert found is not None
        assert found.value == b"%d" % n


async def test_calls_queue(any_site: Site) -> None:
    site, topic = any_site, any_site.topic(Topic.RAW)
    await site.produce(Topic.RAW, 0, *(Record(b"k", b"%d" % n) for n in range(10)))
    found = await asyncio.gather(*(site.log.at(topic, {0: n}) for n in range(10)))
    assert [r[0].value for r in found if r[0] is not None] == [b"%d" % n for n in range(10)]


@pytest.mark.kafka
async def test_what_an_aborted_transaction_left_is_no_record(apache_kafka: str, topics_of, database, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Foreign producers may use transactions: their markers and aborted records are holes, not the log's end."""
    names = await topics_of(apache_kafka, SHARDS)
    topic = names.topic(Topic.RAW)
    producer = AIOKafkaProducer(bootstrap_servers=apache_kafka, transactional_id=f"{names.prefix}tx")
    await producer.start()
    reader = LogReader(apache_kafka)
    await reader.start()
    try:
        async with producer.transaction():
            await producer.send_and_wait(topic, b"kept", partition=0)
        for _ in range(2):
            await producer.begin_transaction()
            for n in range(40):
                await producer.send(topic, b"aborted-%d" % n, partition=0)
            await producer.flush()
            await producer.abort_transaction()
        found = await reader.last(topic, [0])
        assert found[0] is not None
        assert found[0].value == b"kept"
        assert await reader.at(topic, {0: 20}) == {0: None}
    finally:
        await reader.stop()
        await producer.stop()


async def test_a_broker_that_does_not_answer_is_a_bad_moment() -> None:
    reader = LogReader(f"127.0.0.1:{free_port()}", timeout_seconds=1)
    with pytest.raises(Transient):
        await reader.start()
    await reader.stop()
