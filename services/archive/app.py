"""How the archiver is put together: opened in order of need, closed in reverse."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from services.archive.archiver import Archiver, Measure
from services.archive.folder import Folder
from services.archive.settings import Settings
from shared.contracts.topics import SPECS, Names, Topic
from shared.data.control import installation
from shared.data.db import Pool, connect_pool, transaction
from shared.kafka.log_reader import LogReader
from shared.kafka.owning import require_partitions
from shared.process.clock import Clock
from shared.process.compose import opened, patiently
from shared.process.errors import Fatal
from shared.process.http import Health, serve, service_app
from shared.process.logs import configure
from shared.process.settings import Installation, load
from shared.process.supervisor import Supervisor


async def run() -> int:
    env, settings = load(Installation), load(Settings)
    configure("archive", env.log_level)
    names, health = Names(env.prefix), Health()
    if not settings.path:
        raise Fatal("PERENNIAL_ARCHIVE_PATH names no folder to archive to")
    topics = topics_of(settings.topics)
    async with AsyncExitStack() as stack:
        supervisor = Supervisor(stack)
        pool = await patiently(lambda: connect_pool(env.postgres, size=2, service="archive"))
        stack.push_async_callback(pool.close)
        supervisor.add("http", serve(service_app("archive", health, version="1"), env.bind, settings.port))
        reader = await opened(stack, LogReader(env.kafka))
        await require_partitions(reader, env, *topics)
        archiver = Archiver(
            reader=reader,
            pool=pool,
            folder=Folder(Path(settings.path), await patiently(lambda: _log_id(pool))),
            topics=[names.topic(topic) for topic in topics],
            shards=env.shards,
            measure=Measure(settings.seconds, settings.records, settings.file_bytes, settings.look_seconds),
            clock=Clock(env.clock),
            health=health,
        )
        supervisor.add("archive", archiver.run())
        return await supervisor.run()


def topics_of(text: str) -> list[Topic]:
    """The topics a setting names. `Fatal` for one that has not a partition per shard, or does not exist."""
    sharded = {str(spec.topic): spec.topic for spec in SPECS if spec.sharded}
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in sharded]
    if unknown or not wanted:
        raise Fatal(f"PERENNIAL_ARCHIVE_TOPICS is {text!r}; it may name {', '.join(sharded)}")
    return [sharded[name] for name in wanted]


async def _log_id(pool: Pool) -> str:
    async with transaction(pool) as connection:
        return (await installation(connection)).log_id
