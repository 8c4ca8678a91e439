"""How a service owns shards and applies what it reads exactly once: acquire, prove, fetch, commit.

The Postgres commit is the only commit point. A worker folds a poll in memory and hands the writes over;
they happen in one transaction that first proves, under lock, that the epoch is still ours. After any doubt
— fenced, a lost COMMIT answer, a bug — everything held in memory is thrown away and acquired again.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from shared.data import shard_owner
from shared.data.control import installation
from shared.data.db import Connection, Pool, is_moment, transaction
from shared.data.shard_owner import Owner, Position
from shared.kafka.log_reader import LogReader
from shared.kafka.proof import behind, prove
from shared.kafka.records import InRecord
from shared.kafka.shard_consumer import Polled, Reassigned, ShardConsumer
from shared.process.clock import monotonic
from shared.process.crash import POINTS
from shared.process.errors import Fatal, Fenced, Transient
from shared.process.http import Health
from shared.process.metrics import BATCH_SECONDS, BUGS, FENCED, HELD, LAG, OWNED_SHARDS, TRANSIENT, begin
from shared.process.retry import backoff_seconds

log = logging.getLogger("perennial.owner")

_MOST_BUGS_IN_A_ROW = 12
_BEATS_IN_A_SESSION = 10


@dataclass(slots=True)
class OwnedShard:
    """A shard while it is ours: the owner row and the input position as last committed."""

    owner: Owner
    position: Position


class Worker(Protocol):
    """What a service does with its shards. All calls come from one task."""

    async def take(self, connection: Connection, shards: Mapping[int, OwnedShard]) -> None:
        """Read what is kept of these shards, in the transaction that took them. Nothing else is held."""

    async def taken(self) -> None:
        """The shards are ours and proven: publish what a former owner left behind."""

    def drop(self) -> None:
        """Forget every shard: they are no longer ours, or no longer certain."""

    async def handle(self, polled: Polled) -> None:
        """Apply one poll."""

    async def idle(self) -> None:
        """Do what is due by itself; called after every poll, also empty ones."""

    def suspect(self, error: Exception) -> None:
        """The last batch failed for a reason the code does not know; it will come again."""


class FencedReader:
    def __init__(
        self,
        *,
        service: str,
        topic: str,
        consumer: ShardConsumer,
        reader: LogReader,
        pool: Pool,
        worker: Worker,
        health: Health,
        numbers_survive: bool,
        max_records: int,
        heartbeat_seconds: float,
    ) -> None:
        self.shards: dict[int, OwnedShard] = {}
        self._service, self._topic = service, topic
        self._consumer, self._reader, self._pool = consumer, reader, pool
        self._worker, self._health = worker, health
        self._numbers_survive, self._max_records = numbers_survive, max_records
        self._heartbeat = heartbeat_seconds
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._generation = -1
        self._failed: Exception | None = None
        self._turn = asyncio.Lock()
        begin(service)
        LAG.labels(service).set_function(lambda: float(self._consumer.lag()))
        HELD.labels(service).set_function(self._consumer.held_seconds)

    async def run(self) -> None:
        """Serve for ever; ends only by an exception. `Fatal` where going on would lose or double."""
        attempt = bugs = 0
        while True:
            self._health.beat(self._service)
            started = monotonic()
            try:
                if self._generation != self._consumer.generation:
                    await self._take_over()
                elif self._failed is not None:
                    raise self._failed
                await self._round()
                attempt = bugs = 0
                continue
            except Reassigned:
                self._let_go()
                continue
            except Fatal:
                raise
            except Fenced as error:
                FENCED.labels(self._service).inc()
                log.warning("%s", error)
                # still assigned perhaps: the other one may be a zombie, whose session has to end first
                wait = self._yielding()
            except Transient as error:
                TRANSIENT.labels(self._service).inc()
                log.warning("%s", error)
                wait = backoff_seconds(attempt)
            except Exception as error:
                if is_moment(error):
                    TRANSIENT.labels(self._service).inc()
                    log.warning("%s: %s", type(error).__name__, error)
                else:
                    BUGS.labels(self._service).inc()
                    log.exception("a bug")
                    bugs += 1
                    if bugs > _MOST_BUGS_IN_A_ROW:
                        raise
                    self._worker.suspect(error)
                wait = backoff_seconds(attempt)
            attempt += 1
            self._let_go()
            if monotonic() - started > _BEATS_IN_A_SESSION * self._heartbeat:
                # we may be the zombie: the group has to tell us before we take what is another's by now
                wait = max(wait, self._yielding())
            await asyncio.sleep(wait)

    def _yielding(self) -> float:
        return 2 * self._heartbeat * (1 + backoff_seconds(0, 1.0))

    async def commit(
        self,
        shards: Iterable[int],
        positions: Mapping[int, Position],
        write: Callable[[Connection, Mapping[int, Owner]], Awaitable[None]],
    ) -> None:
        """Do `write` in one transaction with new positions; it takes numbers from the owner rows it is given.

        `Fenced` or `Transient` mean that memory may be wrong; the caller lets them pass to `run`. Commits of
        several tasks queue. `Reassigned` when a shard was let go while waiting.
        """
        async with self._turn:
            wanted = sorted(set(shards) | set(positions))
            if any(shard not in self.shards for shard in wanted):
                raise Reassigned
            started = monotonic()
            owners = {shard: copy.copy(self.shards[shard].owner) for shard in wanted}
            POINTS.passing(f"{self._service}.before_transaction")
            async with transaction(self._pool) as connection:
                locked = await shard_owner.lock(connection, self._service, {s: o.epoch for s, o in owners.items()})
                for shard, row in locked.items():
                    if row.next_seq != owners[shard].next_seq:
                        raise Transient(f"shard {shard}: the ledger stands at {row.next_seq}, not where memory has it")
                await write(connection, owners)
                numbered = [o for o in owners.values() if o.next_seq != locked[o.shard].next_seq]
                await shard_owner.write(connection, self._service, numbered, {s: [p] for s, p in positions.items()})
                POINTS.passing(f"{self._service}.in_transaction")
            POINTS.passing(f"{self._service}.after_commit")
            for shard, owner in owners.items():
                if shard in self.shards and self.shards[shard].owner.epoch == owner.epoch:
                    self.shards[shard].owner = owner
                    self.shards[shard].position = positions.get(shard, self.shards[shard].position)
        BATCH_SECONDS.labels(self._service).observe(monotonic() - started)

    def doubt(self, error: Exception) -> None:
        """A commit made outside `run` failed: have `run` do what it does when its own fails."""
        self._failed = error

    @property
    def spare(self) -> bool:
        """Whether every shard is with others; not so while shards are only let go to be acquired anew."""
        return self._generation == self._consumer.generation and not self.shards

    def advanced(self, shard: int, last: InRecord | None, next_offset: int, **numbers: int) -> Position:
        """The shard's position behind `last` (None: nothing but holes was read)."""
        return behind(self.shards[shard].position, last, next_offset, **numbers)

    def _let_go(self) -> None:
        self._generation = -1
        self.shards = {}
        self._worker.drop()

    async def _take_over(self) -> None:
        """Acquire every assigned shard anew, prove its log, and seek."""
        self._let_go()
        generation = self._consumer.generation
        assigned = sorted(self._consumer.assigned())
        if assigned:
            async with transaction(self._pool) as connection:
                log_id = (await installation(connection)).log_id
                taken = await shard_owner.acquire(
                    connection, self._service, assigned, self._owner, [self._topic], log_id
                )
                owned = {
                    shard: OwnedShard(
                        owner, positions[self._topic].in_log(log_id, numbers_survive=self._numbers_survive)
                    )
                    for shard, (owner, positions) in taken.items()
                }
                await self._worker.take(connection, owned)
            starts = await prove(self._reader, self._topic, {shard: one.position for shard, one in owned.items()})
            if generation != self._consumer.generation:
                raise Reassigned
            for shard, one in owned.items():
                self._consumer.seek(shard, max(one.position.next_offset, starts[shard]))
            self.shards = owned
            await self._worker.taken()
        self._generation, self._failed = generation, None
        OWNED_SHARDS.labels(self._service).set(len(self.shards))
        if self.shards:
            self._health.ready()
        log.info("owns shards", extra={"fields": {"shards": assigned}})

    async def _round(self) -> None:
        if not self.shards:
            await asyncio.sleep(0.05)
            return
        polled = await self._consumer.fetch(self.shards, timeout_ms=50, max_records=self._max_records)
        if polled.positions:
            await self._worker.handle(polled)
        await self._worker.idle()
        self._consumer.show({shard: one.position.next_offset for shard, one in self.shards.items()})
