"""Who serves which shard, on each kind of broker, and that a rebalance voids what was fetched before it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial

import pytest
from aiokafka import AIOKafkaProducer

from services.local import groups
from shared.contracts.topics import Topic
from shared.kafka.sender import Record, Sender
from shared.kafka.shard_consumer import _STARVED_POLLS, Reassigned, ShardConsumer
from shared.process.errors import LogReplaced, Transient
from tests.support.brokers import MakeTopics
from tests.support.ports import free_port
from tests.support.spine import SHARDS, ByHand, Site, until


@pytest.fixture
async def member(any_site: Site) -> AsyncIterator[Callable[..., ShardConsumer]]:
    async with AsyncExitStack() as stack:

        def make(**how: str) -> ShardConsumer:
            topic = any_site.topic(Topic.EVENTS)
            found = ShardConsumer(any_site.kafka, topic, f"{topic}.group", session_timeout_ms=6000, **how)  # type: ignore[arg-type]
            stack.push_async_callback(found.stop)
            return found

        yield make


async def _all(consumer: ShardConsumer, *several: ShardConsumer) -> None:
    """Wait until these serve every shard between them, each one once."""

    async def served() -> bool:
        shards = [shard for one in (consumer, *several) for shard in one.assigned()]
        return sorted(shards) == list(range(SHARDS)) and all(one.assigned() for one in (consumer, *several))

    await until(served, 40)


async def test_members_share_the_shards_and_a_rebalance_voids_what_was_fetched(
    any_site: Site, member: Callable[..., ShardConsumer]
) -> None:
    """One after the other, because a broker lets a group wait for seconds whenever it changes."""
    site = any_site
    for shard in range(SHARDS):
        await site.produce(Topic.EVENTS, shard, *(Record(b"k", b"%d" % n) for n in range(10)))
    one = member(instance="one")
    await one.start()
    await _all(one)
    generation = one.generation
    for shard in range(SHARDS):
        one.seek(shard, 4)
    read: list[int] = []

    async def both() -> bool:
        polled = await one.fetch(range(SHARDS), timeout_ms=200, max_records=5)
        assert all(polled.positions[shard] == records[-1].offset + 1 for shard, records in polled.records.items())
        read.extend(r.offset for records in polled.records.values() for r in records)
        return len(read) == 12

    await until(both)
    assert sorted(read) == sorted(2 * list(range(4, 10)))
    assert {shard: one.at_end(shard, 10)[0] for shard in range(SHARDS)} == {0: True, 1: True}
    assert one.at_end(0, 9)[0] is False
    assert one.held_seconds() == 0

    # a second member: some shard moves, and the first learns of it before it may commit anything
    two = member(instance="two")
    starting = asyncio.create_task(two.start())

    async def told() -> bool:
        try:
            await one.fetch(one.assigned(), timeout_ms=50, max_records=5)
        except Reassigned:
            return True
        return False

    await until(told, 40)
    await asyncio.wait_for(starting, 40)
    await _all(one, two)
    assert one.generation > generation
    lost = next(iter(two.assigned()))
    with pytest.raises(Reassigned):
        one.seek(lost, 0)
    with pytest.raises(Reassigned):
        await one.fetch([lost], timeout_ms=50, max_records=5)
    assert one.at_end(lost, 0) == (False, 0)


async def test_a_member_that_was_given_up_serves_nothing_until_it_is_given_shards_anew(any_site: Site) -> None:
    """Others serve them by then. A rebalance among living members is no reason to stop."""
    site, seen = any_site, list[tuple[bool, frozenset[int]]]()
    every = frozenset(range(SHARDS))
    one = ShardConsumer(site.kafka, site.topic(Topic.EVENTS), site.names.group("segmenter"), session_timeout_ms=6000)
    told = one.reassigned

    def note(*, revoked: bool) -> None:
        told(revoked=revoked)
        seen.append((revoked, one.assigned()))

    one.reassigned = note  # type: ignore[method-assign]
    await one.start()
    try:
        await _all(one)
        await groups.dismiss(site.kafka, site.names, os.getpid() + 1)
        one._consumer._coordinator.request_rejoin()

        async def times(count: int) -> bool:
            return len(seen) >= count

        await until(partial(times, 4), 40)
        await groups.dismiss(site.kafka, site.names, os.getpid())
        await until(partial(times, 6), 40)
    finally:
        await one.stop()
    assert seen[1:] == [(False, every), (True, every), (False, every), (True, frozenset()), (False, every)]


async def test_a_position_outside_the_log_is_fatal(any_site: Site, request: pytest.FixtureRequest) -> None:
    """To begin anew at either end would double or lose; only a person can say which log this is."""
    site = any_site
    await site.produce(Topic.EVENTS, 0, Record(b"k", b"v"))
    async with site.consumer(Topic.EVENTS) as one:
        one.seek(0, 500)
        one.seek(1, 0)
        if "embedded" in request.node.name:
            # this broker answers with silence; nothing else may be read instead
            assert (await one.fetch([0], timeout_ms=500, max_records=5)).records == {}
            return
        with pytest.raises(LogReplaced, match=r"500.* lie outside the log"):
            for _ in range(50):
                await one.fetch([0, 1], timeout_ms=200, max_records=5)


async def test_a_long_log_does_not_starve_its_reader(site: Site) -> None:
    """The embedded broker reads for no longer than a fetch may wait, and says nothing if it did not get that far."""
    for n in range(30):
        await asyncio.gather(*(site.produce(Topic.EVENTS, 0, Record(b"k", b"%d-%d" % (n, m))) for m in range(100)))
    async with site.consumer(Topic.EVENTS) as one:
        one._consumer._fetcher._fetch_max_wait_ms = 1
        one.seek(0, 2900)
        one.seek(1, 0)
        read: list[int] = []

        async def all_read() -> bool:
            polled = await one.fetch(range(SHARDS), timeout_ms=50, max_records=1000)
            read.extend(record.offset for record in polled.records.get(0, []))
            return len(read) == 100

        await until(all_read)
        assert read == list(range(2900, 3000))


async def test_a_rebalance_while_fetching_is_noticed_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new assignment has no positions; the client would wait for them for ever, and the shards with it."""
    async with site.consumer(Topic.EVENTS) as one:

        async def rebalancing(*_: object, **__: object) -> dict[object, object]:
            one.reassign()
            return {}

        monkeypatch.setattr(one._consumer, "getmany", rebalancing)
        async with asyncio.timeout(2):
            with pytest.raises(Reassigned):
                await one.fetch(range(SHARDS), timeout_ms=10, max_records=1)


async def test_a_broker_that_is_away_is_a_bad_moment() -> None:
    consumer = ShardConsumer(f"127.0.0.1:{free_port()}", "t", "g")
    with pytest.raises(Transient):
        await consumer.start()


@pytest.mark.kafka
async def test_an_open_transaction_holds_back_what_lies_behind_it(apache_kafka: str, topics_of: MakeTopics) -> None:
    """What is held is neither read nor taken for the end of the log, and the other shards are asked for no more slowly."""
    topic = (await topics_of(apache_kafka, SHARDS)).topic(Topic.RAW)
    ordinary = Sender(apache_kafka)
    foreign = AIOKafkaProducer(bootstrap_servers=apache_kafka, transactional_id=f"{topic}.foreign")
    one = ByHand(apache_kafka, topic, SHARDS)
    read: list[tuple[int, bytes | None]] = []
    async with AsyncExitStack() as stack:
        for part in (ordinary, foreign, one):
            await part.start()
            stack.push_async_callback(part.stop)
        for shard in range(SHARDS):
            one.seek(shard, 0)

        async def told(*wanted: tuple[int, bytes]) -> bool:
            polled = await one.fetch(range(SHARDS), timeout_ms=20, max_records=100)
            read.extend((shard, record.value) for shard, several in polled.records.items() for record in several)
            return sorted(read) == sorted(wanted)

        await foreign.begin_transaction()
        await foreign.send_and_wait(topic, b"never", partition=0)
        await ordinary.send(topic, 0, [Record(b"k", b"behind")])
        await ordinary.send(topic, 1, [Record(b"k", b"beside")])
        await until(partial(told, (1, b"beside")))
        for _ in range(3 * _STARVED_POLLS):
            assert await told((1, b"beside"))
        assert 0 < one.held_seconds() < 60
        assert one.at_end(0, 0)[0] is False
        assert one._consumer._fetcher._fetch_max_wait_ms == 20
        await foreign.abort_transaction()
        await until(partial(told, (1, b"beside"), (0, b"behind")))
        assert one.held_seconds() == 0
