"""How the segmenter is put together: opened in order of need, closed in reverse.

The relay stops before the sender it sends with, the pipeline before the relay: nothing is committed that
could not be queued, and what is queued at the end is read again from the table by the next owner.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path

from services.segmenter import store
from services.segmenter.api import make_app
from services.segmenter.erasing import Overwriter
from services.segmenter.pipeline import Segmenter
from services.segmenter.privacy import privacy
from services.segmenter.publish import Publisher
from services.segmenter.settings import Settings
from shared.contracts.topics import Names, Topic
from shared.data.control import RulesBook
from shared.data.db import Pool, transaction
from shared.data.ledger import LedgerRow, prepare_partitions
from shared.gazetteer import load as load_gazetteer
from shared.kafka.log_reader import LogReader
from shared.kafka.owning import Readers, noting, opened_database, require_partitions
from shared.kafka.records import InRecord
from shared.kafka.relay import Relay
from shared.kafka.sender import Sender
from shared.kafka.side_input import SideInput
from shared.process.clock import Clock
from shared.process.compose import opened
from shared.process.errors import Transient
from shared.process.http import Health, serve
from shared.process.logs import configure
from shared.process.metrics import ACTIVITY_USERS, SEGMENT_USERS, STAGE_USERS
from shared.process.settings import Installation, load
from shared.process.supervisor import Supervisor

log = logging.getLogger("perennial.segmenter")
_HOUR = 3600.0
_COUNT_SECONDS = 10.0


async def run() -> int:
    env, settings = load(Installation), load(Settings)
    configure("segmenter", env.log_level)
    names, clock, health = Names(env.prefix), Clock(env.clock), Health()
    async with AsyncExitStack() as stack:
        supervisor = Supervisor(stack)
        pool = await opened_database(stack, env, clock, size=6, service="segmenter")
        gazetteer = load_gazetteer()
        # calls of a reader queue: whoever exports a user must not hold up a takeover
        raw_reader = LogReader(env.kafka)

        async def read_raw(partition: int, offset: int) -> InRecord | None:
            return (await raw_reader.at(names.topic(Topic.RAW), {partition: offset}))[partition]

        app = make_app(pool, gazetteer, env.shards, clock, health)
        app.include_router(privacy(pool, gazetteer, env.shards, read_raw))
        supervisor.add("http", serve(app, env.bind, settings.port))
        sender = await opened(stack, Sender(env.kafka))
        log_reader = await opened(stack, LogReader(env.kafka))
        await opened(stack, raw_reader)
        await require_partitions(log_reader, env, Topic.EVENTS, Topic.MERGE)
        publisher = Publisher(names)
        relay: Relay[LedgerRow] = Relay("segmenter", sender, publisher.row, noting(pool, "segmenter"))
        stack.push_async_callback(relay.stop)
        rules = RulesBook(Path(env.home) / "last-good" / "segmenter-rules.json")
        merges = await opened(stack, SideInput(env.kafka, names.topic(Topic.MERGE), log_reader))
        segmenter = Segmenter(
            pool, rules, relay, publisher, clock, merges=merges, all_shards=env.shards,
            most_cached=settings.cached_users, fault=settings.fault,
        )  # fmt: skip
        readers = Readers(
            stack, env, log_reader, pool, health, session_seconds=settings.session_seconds,
            batch_records=settings.batch_records,
        )  # fmt: skip
        segmenter.reader = await readers.opened("segmenter", Topic.EVENTS, segmenter)
        supervisor.add("relay", relay.run())
        supervisor.add("partitions", _keep_partitions(pool, clock))
        supervisor.add("erasures", Overwriter(pool, lambda: segmenter.shards).run())
        supervisor.add("counts", _tell_counts(pool, segmenter))
        supervisor.add("pipeline", segmenter.reader.run())
        return await supervisor.run()


async def _keep_partitions(pool: Pool, clock: Clock) -> None:
    while True:
        await asyncio.sleep(_HOUR)
        try:
            async with transaction(pool) as connection:
                await prepare_partitions(connection, clock.real_ms())
        except Transient as error:
            log.warning("%s", error)


async def _tell_counts(pool: Pool, segmenter: Segmenter) -> None:
    """Show how many users of these shards stand where; the sum over all processes is everyone."""
    while True:
        try:
            async with transaction(pool) as connection:
                found = await store.counts(connection, list(segmenter.shards))
        except Transient as error:
            log.warning("%s", error)
        else:
            shown = {"stage": STAGE_USERS, "activity": ACTIVITY_USERS, "segment": SEGMENT_USERS}
            STAGE_USERS.clear()
            ACTIVITY_USERS.clear()
            SEGMENT_USERS.clear()
            for kind, name, users in found:
                shown[kind].labels(name).set(users)
        await asyncio.sleep(_COUNT_SECONDS)
