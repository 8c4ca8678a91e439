"""How the ingest consumer is put together: opened in order of need, closed in reverse.

The sender outlives the pipeline, which outlives the group membership's end: what was sent is acknowledged
before another member takes over, or is decided again by it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path

from services.ingest.consumer.pipeline import Pipeline
from services.ingest.consumer.settings import Settings
from services.ingest.domain.intake import Intake
from services.ingest.letters.api import letters
from services.ingest.letters.replayer import Replayer
from shared.contracts.identifiers import fresh_id
from shared.contracts.topics import Names, Topic
from shared.data.control import RulesBook
from shared.data.db import Pool, connect_pool, is_moment
from shared.gazetteer import load as load_gazetteer
from shared.kafka.log_reader import LogReader
from shared.kafka.owning import require_partitions
from shared.kafka.sender import Sender
from shared.kafka.shard_consumer import ShardConsumer
from shared.process.clock import Clock
from shared.process.compose import opened, patiently
from shared.process.errors import Transient
from shared.process.http import Health, serve, service_app
from shared.process.logs import configure
from shared.process.settings import Installation, load
from shared.process.supervisor import Supervisor

log = logging.getLogger("perennial.ingest")
_POLL_SECONDS = 2.0
_MOST_SOURCES = 1000
"""Whoever writes to raw without a gateway may name as many sources as they like."""
_TELL_SOURCES = """
INSERT INTO control.source_verdict (source, minute, accepted, rejected)
SELECT source, extract(epoch FROM now())::bigint / 60, accepted, rejected
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS told (source, accepted, rejected)
ON CONFLICT (source, minute) DO UPDATE SET accepted = source_verdict.accepted + excluded.accepted,
    rejected = source_verdict.rejected + excluded.rejected
"""
_FORGET_SOURCES = "DELETE FROM control.source_verdict WHERE minute < extract(epoch FROM now())::bigint / 60 - 1440"


async def run() -> int:
    installation, settings = load(Installation), load(Settings)
    configure("ingest", installation.log_level)
    names, clock, health = Names(installation.prefix), Clock(installation.clock), Health()
    async with AsyncExitStack() as stack:
        supervisor = Supervisor(stack)
        # it decides without Postgres, also when it starts
        pool = await connect_pool(installation.postgres, size=4, at_once=False)
        stack.callback(pool.terminate)
        letters_reader = LogReader(installation.kafka)
        app = service_app("ingest", health, version="1")
        app.include_router(letters(pool, letters_reader, names.topic(Topic.RAW), installation.shards))
        supervisor.add("http", serve(app, installation.bind, settings.port))
        sender = await opened(stack, Sender(installation.kafka))
        reader = await opened(stack, LogReader(installation.kafka))
        await opened(stack, letters_reader)
        await require_partitions(reader, installation, Topic.RAW, Topic.EVENTS)
        consumer = await opened(
            stack,
            ShardConsumer(
                installation.kafka,
                names.topic(Topic.RAW),
                names.group("ingest"),
                instance=installation.instance,
                session_timeout_ms=int(settings.session_seconds * 1000),
            ),
        )
        pipeline = Pipeline(
            consumer=consumer,
            reader=reader,
            sender=sender,
            clock=clock,
            health=health,
            raw_topic=names.topic(Topic.RAW),
            events_topic=names.topic(Topic.EVENTS),
            batch_records=settings.batch_records,
            time_seconds=settings.time_seconds,
        )
        definitions = _Definitions(pool, pipeline, installation.shards, Path(installation.home), settings.rules_version)
        await patiently(definitions.refresh)
        supervisor.add("definitions", definitions.run())
        supervisor.add("pipeline", pipeline.run())
        replayer = Replayer(
            pool, letters_reader, sender, names.topic(Topic.RAW), pipeline.judge, clock, health, fresh_id("ingest-")
        )
        supervisor.add("replays", replayer.run())
        return await supervisor.run()


class _Definitions:
    """Follows rules versions and repair requests; neither is needed to go on deciding."""

    def __init__(self, pool: Pool, pipeline: Pipeline, shards: int, home: Path, fixed_version: int) -> None:
        self._pool, self._pipeline, self._shards, self._fixed = pool, pipeline, shards, fixed_version
        self._book = RulesBook(home / "last-good" / "ingest-rules.json")
        self._gazetteer = load_gazetteer()
        self._in_use = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                await self.refresh()
                await self._repairs()
                await self._tell_sources()
            except Transient as error:
                log.warning("%s", error)

    async def refresh(self) -> None:
        version = await self._book.refresh(self._pool)
        if self._fixed:
            version = self._fixed
            await self._book.get(self._pool, version)
        if version != self._in_use:
            self._pipeline.use_rules(version, Intake(self._book.known(version), self._gazetteer, self._shards))
            self._in_use = version

    async def _tell_sources(self) -> None:
        """Add what was decided of each source's events to `control.source_verdict`; gateways throttle by it."""
        found = self._pipeline.by_source()
        if not found:
            return
        sources = sorted({source for source, _ in found if "\x00" not in source})[:_MOST_SOURCES]
        try:
            await self._pool.execute(
                _TELL_SOURCES, sources, [found[s, True] for s in sources], [found[s, False] for s in sources]
            )
            await self._pool.execute(_FORGET_SOURCES)
        except Exception as error:
            if not is_moment(error):
                raise

    async def _repairs(self) -> None:
        try:
            for row in await self._pool.fetch(
                "SELECT shard, after FROM control.repair WHERE topic = $1 AND done_at IS NULL", Topic.EVENTS.value
            ):
                if self._pipeline.rewind(row["shard"], row["after"]):
                    await self._pool.execute(
                        "UPDATE control.repair SET done_at = now() WHERE topic = $1 AND shard = $2",
                        Topic.EVENTS.value,
                        row["shard"],
                    )
        except Exception as error:
            if not is_moment(error):
                raise
