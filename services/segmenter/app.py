"""How the segmenter is put together: opened in order of need, closed in reverse.

The relay stops before the sender it sends with, the pipeline before the relay: nothing is committed that
could not be queued, and what is queued at the end is read again from the table by the next owner.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from services.segmenter.api import make_app
from services.segmenter.pipeline import Segmenter
from services.segmenter.publish import Publisher
from services.segmenter.settings import Settings
from shared.contracts.topics import Names, Topic
from shared.data.control import RulesBook, installation
from shared.data.db import connect_pool, transaction
from shared.data.ledger import LedgerRow, prepare_partitions
from shared.data.shard_owner import advance_relayed
from shared.gazetteer import load as load_gazetteer
from shared.kafka.fenced_reader import FencedReader
from shared.kafka.log_reader import LogReader
from shared.kafka.relay import Relay
from shared.kafka.sender import Sender
from shared.kafka.shard_consumer import ShardConsumer
from shared.process.clock import Clock
from shared.process.compose import opened, patiently
from shared.process.errors import Fatal, Transient
from shared.process.http import Health, serve
from shared.process.logs import configure
from shared.process.settings import Installation, load
from shared.process.supervisor import Supervisor

log = logging.getLogger("perennial.segmenter")
_HOUR = 3600.0


async def run() -> int:
    env, settings = load(Installation), load(Settings)
    configure("segmenter", env.log_level)
    names, clock, health = Names(env.prefix), Clock(env.clock), Health()
    async with AsyncExitStack() as stack:
        supervisor = Supervisor(stack)
        pool = await patiently(lambda: connect_pool(env.postgres))
        stack.push_async_callback(pool.close)
        async with transaction(pool) as connection:
            made = await installation(connection)
            await prepare_partitions(connection, clock.real_ms())
        if made.shards != env.shards:
            raise Fatal(f"the installation was made with {made.shards} shards, PERENNIAL_SHARDS says {env.shards}")
        app = make_app(pool, load_gazetteer(), env.shards, health)
        supervisor.add("http", serve(app, env.bind, settings.port))
        sender = await opened(stack, Sender(env.kafka))
        log_reader = await opened(stack, LogReader(env.kafka))
        topic = names.topic(Topic.EVENTS)
        if (count := await log_reader.partitions(topic)) != env.shards:
            raise Fatal(f"topic {topic} has {count} partitions, the installation {env.shards} shards")

        async def note(seqs: Mapping[int, int]) -> None:
            async with transaction(pool) as connection:
                await advance_relayed(connection, "segmenter", seqs)

        publisher = Publisher(names)
        relay: Relay[LedgerRow] = Relay("segmenter", sender, publisher.row, note)
        stack.push_async_callback(relay.stop)
        rules = RulesBook(Path(env.home) / "last-good" / "segmenter-rules.json")
        segmenter = Segmenter(
            pool, rules, relay, publisher, clock, most_cached=settings.cached_users, fault=settings.fault
        )
        consumer = await opened(
            stack,
            ShardConsumer(
                env.kafka,
                topic,
                names.group("segmenter"),
                instance=env.instance,
                session_timeout_ms=int(settings.session_seconds * 1000),
            ),
        )
        reader = FencedReader(
            service="segmenter",
            topic=topic,
            consumer=consumer,
            reader=log_reader,
            pool=pool,
            worker=segmenter,
            health=health,
            numbers_survive=False,
            max_records=settings.batch_records,
            heartbeat_seconds=settings.session_seconds / 10,
        )
        segmenter.reader = reader
        supervisor.add("relay", relay.run())
        supervisor.add("partitions", _keep_partitions(pool, clock))
        supervisor.add("pipeline", reader.run())
        return await supervisor.run()


async def _keep_partitions(pool: object, clock: Clock) -> None:
    while True:
        await asyncio.sleep(_HOUR)
        try:
            async with transaction(pool) as connection:  # type: ignore[arg-type]
                await prepare_partitions(connection, clock.real_ms())
        except Transient as error:
            log.warning("%s", error)
