"""How a service that owns shards is put together: what is the same whatever it makes of its records."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from shared.contracts.topics import SPECS, Names, Topic
from shared.data.control import installation
from shared.data.db import Pool, connect_pool, transaction
from shared.data.ledger import prepare_partitions
from shared.data.shard_owner import advance_relayed
from shared.kafka.fenced_reader import FencedReader, Worker
from shared.kafka.log_reader import LogReader
from shared.kafka.shard_consumer import ShardConsumer
from shared.process.clock import Clock
from shared.process.compose import opened, patiently
from shared.process.errors import Fatal
from shared.process.http import Health
from shared.process.settings import Installation

_SHARDED = frozenset(spec.topic for spec in SPECS if spec.sharded)


async def opened_database(stack: AsyncExitStack, env: Installation, clock: Clock, *, size: int, service: str) -> Pool:
    """The installation's database, with the partitions that rows of the coming weeks fall into.

    `Fatal` unless it was made, and with as many shards as this process is told.
    """
    pool = await patiently(lambda: connect_pool(env.postgres, size, service=service))
    stack.push_async_callback(pool.close)
    async with transaction(pool) as connection:
        made = await installation(connection)
        await prepare_partitions(connection, clock.real_ms())
    if made.shards != env.shards:
        raise Fatal(f"the installation was made with {made.shards} shards, PERENNIAL_SHARDS says {env.shards}")
    return pool


async def require_partitions(reader: LogReader, env: Installation, *topics: Topic) -> None:
    """`Fatal` unless each topic has one partition per shard, or just one if it is not sharded."""
    for topic in topics:
        name, wanted = Names(env.prefix).topic(topic), env.shards if topic in _SHARDED else 1
        count = await reader.partitions(name)
        if count != wanted:
            raise Fatal(
                f"topic {name} has {count} partitions, {wanted} are needed;"
                " run `perennial migrate`, or set PERENNIAL_SHARDS to what it was made with"
            )


def noting(pool: Pool, service: str) -> Callable[[Mapping[int, int]], Awaitable[None]]:
    """How a relay notes what the broker acknowledged."""

    async def note(seqs: Mapping[int, int]) -> None:
        async with transaction(pool) as connection:
            await advance_relayed(connection, service, seqs)

    return note


@dataclass(frozen=True)
class Readers:
    """What every `FencedReader` of one process shares."""

    stack: AsyncExitStack
    env: Installation
    log_reader: LogReader
    pool: Pool
    health: Health
    session_seconds: float
    batch_records: int

    async def opened(self, service: str, topic: Topic, worker: Worker, *, fetch_every_ms: int = 22) -> FencedReader:
        """A reader of `topic` as a member of the service's group; the stack ends the membership."""
        names = Names(self.env.prefix)
        consumer = await opened(
            self.stack,
            ShardConsumer(
                self.env.kafka,
                names.topic(topic),
                names.group(service),
                instance=self.env.instance,
                fetch_every_ms=fetch_every_ms,
                session_timeout_ms=int(self.session_seconds * 1000),
            ),
        )
        return FencedReader(
            service=service,
            topic=names.topic(topic),
            consumer=consumer,
            reader=self.log_reader,
            pool=self.pool,
            worker=worker,
            health=self.health,
            # only the feed's numbers are a ledger's; the others are offsets, which a new log begins anew
            numbers_survive=topic is Topic.FEED,
            max_records=self.batch_records,
            heartbeat_seconds=self.session_seconds / 10,
        )
