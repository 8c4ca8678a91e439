"""How a test runs the services' own parts inside its process: real broker, real Postgres, and every seam in its hands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from services import packs
from services.ingest.consumer.pipeline import Pipeline
from services.ingest.domain.intake import Intake
from services.local import migrate
from services.local.topics import admin
from services.notifier.book import CampaignBook
from services.notifier.context.handler import ContextHandler
from services.notifier.dispatch import Dispatcher
from services.notifier.messages import OutcomeRow
from services.notifier.pipeline import Notifier
from services.notifier.publish import Publisher as OutcomePublisher
from services.notifier.runs import Runs
from services.notifier.scheduler import Scheduler
from services.notifier.transports.push import Outcome, Push, Sent
from services.segmenter.pipeline import Segmenter
from services.segmenter.publish import Publisher
from shared.contracts.events import Decision, FeedRow, TimeRecord, decode_decision, decode_feed, encode
from shared.contracts.identifiers import record_digest, shard_of
from shared.contracts.rules import Rules
from shared.contracts.topics import SPECS, Names, Topic
from shared.data.control import RulesBook
from shared.data.db import Pool, transaction
from shared.data.ledger import LedgerRow, prepare_partitions
from shared.gazetteer import load as load_gazetteer
from shared.kafka.fenced_reader import FencedReader, Worker
from shared.kafka.log_reader import LogReader
from shared.kafka.owning import noting
from shared.kafka.relay import Relay
from shared.kafka.sender import Record, Sender
from shared.kafka.shard_consumer import ShardConsumer
from shared.kafka.side_input import SideInput
from shared.process.clock import Clock, write_clock
from shared.process.http import Health
from tests.support.people import weather

SHARDS = 2


async def until(what: Callable[[], Awaitable[Any]], seconds: float = 20.0) -> Any:
    """The first truthy answer of `what`."""
    deadline = time.monotonic() + seconds
    while True:
        found = await what()
        if found:
            return found
        assert time.monotonic() < deadline, f"after {seconds:g} s still: {found!r}"
        await asyncio.sleep(0.02)


@dataclass
class Running:
    """Tasks of one service; `died` waits for the first that ends by itself, and raises what it died of."""

    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    def add(self, work: Coroutine[Any, Any, Any]) -> None:
        self.tasks.append(asyncio.create_task(work))

    async def died(self, seconds: float = 20.0) -> None:
        done, _ = await asyncio.wait(self.tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        assert done, "nothing has ended"
        for task in done:
            task.result()

    async def stop(self) -> None:
        for task in reversed(self.tasks):
            task.cancel()
            await asyncio.wait({task})

    def check(self) -> None:
        """Raise what a task died of."""
        for task in self.tasks:
            if task.done():
                task.result()


class Segmenting(Running):
    segmenter: Segmenter
    reader: FencedReader
    relay: Relay[LedgerRow]


class Notifying(Running):
    notifier: Notifier
    reader: FencedReader
    dispatcher: Dispatcher
    book: CampaignBook
    relay: Relay[OutcomeRow]


class Phones:
    """A transport that keeps what it was given; `answers` scripts outcomes by token, then everything is taken."""

    name = "phones"

    def __init__(self) -> None:
        self.pushes: list[Push] = []
        self.answers: dict[str, list[Outcome]] = {}
        self.hold: asyncio.Event | None = None

    async def send(self, push: Push) -> Outcome:
        self.pushes.append(push)
        if self.hold is not None:
            await self.hold.wait()
        scripted = self.answers.get(push.token)
        return scripted.pop(0) if scripted else Sent(f"ref-{len(self.pushes)}")

    async def close(self) -> None:
        return


class ByHand(ShardConsumer):
    """A shard consumer that is given every shard at once: brokers let a group wait for seconds before it begins."""

    def __init__(self, bootstrap: str, topic: str, shards: int, fetch_bytes: int = 1_048_576) -> None:
        super().__init__(bootstrap, topic, "unused")
        self._fetch_bytes = fetch_bytes
        self._bootstrap = bootstrap
        self._all = [TopicPartition(topic, shard) for shard in range(shards)]

    async def start(self) -> None:
        await self._consumer.stop()
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=20,
            max_partition_fetch_bytes=self._fetch_bytes,
            retry_backoff_ms=100,
        )
        await self._consumer.start()
        self._consumer.assign(self._all)
        self.reassign()

    def show(self, positions: Mapping[int, int]) -> None:
        """There is no group to tell."""

    def reassign(self) -> None:
        """As if the group had been rebalanced, with the same outcome."""
        self.generation += 1


class Site:
    """One installation: topics and a database of its own, with the weather pack in force as rules version 1."""

    def __init__(self, kafka: str, names: Names, pool: Pool, clock_file: Path) -> None:
        self.kafka, self.names, self.pool = kafka, names, pool
        self.clock_file = clock_file
        self.clock = Clock()
        self.gazetteer = load_gazetteer()
        self._offsets: defaultdict[tuple[str, int], int] = defaultdict(lambda: -1)
        self.sender: Sender
        self.log: LogReader

    def topic(self, topic: Topic) -> str:
        return self.names.topic(topic)

    async def prepare(self, rules: Rules | None = None) -> None:
        async with transaction(self.pool) as connection:
            await migrate.adopt_log(connection, SHARDS, "log-1")
            await prepare_partitions(connection, self.clock.real_ms())
        await self.install(rules or weather())

    async def install(self, rules: Rules) -> int:
        async with self.pool.acquire() as connection:
            return (await packs.install_version(connection, rules)).version

    def move_time(self, to_ms: int) -> None:
        """Product time is `to_ms` from now on, for parts that were given `clock`."""
        write_clock(self.clock_file, to_ms)
        if str(self.clock_file) != str(getattr(self.clock, "_path", "")):
            self.clock = Clock(str(self.clock_file))

    # -- writing to topics

    async def produce(self, topic: Topic, shard: int, *records: Record) -> int:
        return await self.sender.send(self.topic(topic), shard, list(records))

    async def post(
        self, user: str, name: str, at: int | None = None, *, partition: int | None = None, **more: Any
    ) -> None:
        """One event in raw, as the gateway writes it."""
        received = self.clock.now_ms() if at is None else at
        event = {"type": "track", "event": name, "userId": user, **more}
        headers = [("received_at", str(received).encode()), ("type", b"track"), ("source", b"app"), ("mode", b"live")]
        if message_id := more.get("messageId"):
            headers.append(("message_id", message_id.encode()))
        record = Record(user.encode(), json.dumps(event).encode(), headers)
        await self.produce(Topic.RAW, shard_of(user, SHARDS) if partition is None else partition, record)

    async def decide(self, *decisions: Any, shard: int) -> None:
        """Decisions in `app.events.v1`, as ingest writes them."""
        records = [Record(getattr(d, "user_id", "").encode(), encode(d)) for d in decisions]
        await self.produce(Topic.EVENTS, shard, *records)

    async def feed(self, *rows: FeedRow, shard: int) -> None:
        await self.produce(Topic.FEED, shard, *(Record(row.user_id.encode(), encode(row)) for row in rows))

    # -- reading topics

    async def records(self, topic: Topic, shard: int) -> list[Any]:
        """Everything in a partition, up to its end."""
        consumer: Any = AIOKafkaConsumer(
            bootstrap_servers=self.kafka, auto_offset_reset="earliest", fetch_max_wait_ms=20
        )
        await consumer.start()
        try:
            tp = TopicPartition(self.topic(topic), shard)
            consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
            found: list[Any] = []
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                for records in (await consumer.getmany(tp, timeout_ms=50)).values():
                    found += records
                highwater = consumer.highwater(tp)
                if (
                    highwater is not None
                    and consumer.last_poll_timestamp(tp)
                    and await consumer.position(tp) >= highwater
                ):
                    return found
            raise AssertionError(f"the end of {tp} was not reached")
        finally:
            await consumer.stop()

    async def decisions(self, shard: int) -> list[Decision]:
        return [decode_decision(r.value) for r in await self.records(Topic.EVENTS, shard)]

    async def decided(self, shard: int) -> list[Any]:
        return [d for d in await self.decisions(shard) if not isinstance(d, TimeRecord)]

    async def fed(self, shard: int) -> list[FeedRow]:
        found = [decode_feed(r.value) for r in await self.records(Topic.FEED, shard)]
        return [row for row in found if isinstance(row, FeedRow)]

    # -- asking the database

    async def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in await self.pool.fetch(query, *values)]

    async def ledger(self, shard: int) -> list[dict[str, Any]]:
        """Ledger and outbox of a shard together, in the order of their numbers."""
        return await self.rows(
            "SELECT * FROM segmenter.ledger WHERE shard = $1 UNION ALL SELECT * FROM segmenter.outbox WHERE shard = $1"
            " ORDER BY seq",
            shard,
        )

    async def applied(self, shard: int, src: int, service: str = "segmenter") -> None:
        """Wait until a service has applied number `src` of a shard."""

        async def reached() -> bool:
            found = await self.pool.fetchval(
                "SELECT last_src FROM spine.shard_position WHERE service = $1 AND shard = $2", service, shard
            )
            return found is not None and found >= src

        await until(reached)

    async def tallies(self, shard: int | None = None) -> dict[str, int]:
        rows = await self.rows(
            "SELECT kind || ':' || name AS what, sum(users)::int AS users FROM segmenter.tally"
            " WHERE $1::int IS NULL OR shard = $1 GROUP BY 1 HAVING sum(users) <> 0",
            shard,
        )
        return {row["what"]: row["users"] for row in rows}

    # -- services

    @asynccontextmanager
    async def consumer(self, topic: Topic, fetch_bytes: int = 1_048_576) -> AsyncIterator[ByHand]:
        consumer = ByHand(self.kafka, self.topic(topic), 1 if topic is Topic.CONTEXT else SHARDS, fetch_bytes)
        await consumer.start()
        try:
            yield consumer
        finally:
            await consumer.stop()

    @asynccontextmanager
    async def ingest(
        self,
        *,
        time_seconds: float = 0.1,
        batch: int = 5000,
        version: int = 1,
        rules: Rules | None = None,
        fetch_bytes: int = 1_048_576,
    ) -> AsyncIterator[Ingesting]:
        async with self.consumer(Topic.RAW, fetch_bytes) as consumer:
            running = Ingesting()
            running.pipeline = Pipeline(
                consumer=consumer,
                reader=self.log,
                sender=self.sender,
                clock=self.clock,
                health=Health(),
                raw_topic=self.topic(Topic.RAW),
                events_topic=self.topic(Topic.EVENTS),
                batch_records=batch,
                time_seconds=time_seconds,
            )
            running.pipeline.use_rules(version, Intake(rules or weather(), self.gazetteer, SHARDS))
            running.add(running.pipeline.run())
            try:
                yield running
            finally:
                await running.stop()

    def _reader(
        self, service: str, topic: Topic, consumer: ShardConsumer, worker: Worker, most: int = 20_000
    ) -> FencedReader:
        return FencedReader(
            service=service,
            topic=self.topic(topic),
            consumer=consumer,
            reader=self.log,
            pool=self.pool,
            worker=worker,
            health=Health(),
            numbers_survive=topic is Topic.FEED,
            max_records=most,
            heartbeat_seconds=0.05,
        )

    @asynccontextmanager
    async def segmenter(self, *, sender: Sender | None = None, batch: int = 20_000) -> AsyncIterator[Segmenting]:
        running = Segmenting()
        publisher = Publisher(self.names)
        running.relay = Relay("segmenter", sender or self.sender, publisher.row, noting(self.pool, "segmenter"))
        async with AsyncExitStack() as stack:
            stack.push_async_callback(running.relay.stop)
            merges = SideInput(self.kafka, self.topic(Topic.MERGE), self.log)
            stack.push_async_callback(merges.stop)
            await merges.start()
            running.segmenter = Segmenter(
                self.pool, RulesBook(), running.relay, publisher, self.clock, merges=merges, all_shards=SHARDS,
                most_cached=100_000,
            )  # fmt: skip
            consumer = await stack.enter_async_context(self.consumer(Topic.EVENTS))
            stack.push_async_callback(running.stop)
            running.reader = running.segmenter.reader = self._reader(
                "segmenter", Topic.EVENTS, consumer, running.segmenter, batch
            )
            running.add(running.relay.run())
            running.add(running.reader.run())
            yield running

    @asynccontextmanager
    async def notifier(
        self, phones: Phones, *, context: bool = False, dispatch: bool = True
    ) -> AsyncIterator[Notifying]:
        running = Notifying()
        running.book = CampaignBook(self.pool, RulesBook())
        await running.book.refresh()
        async with AsyncExitStack() as stack:
            running.relay = Relay(
                "notifier", self.sender, OutcomePublisher(self.names).row, noting(self.pool, "notifier")
            )
            stack.push_async_callback(running.relay.stop)
            running.dispatcher = Dispatcher(
                pool=self.pool, book=running.book, transport=phones, relay=running.relay, clock=self.clock, most=10
            )
            runs = Runs(self.pool, self.gazetteer)
            running.notifier = Notifier(
                pool=self.pool, book=running.book, relay=running.relay, dispatcher=running.dispatcher, runs=runs,
                clock=self.clock, gazetteer=self.gazetteer, most_cached=10_000,
            )  # fmt: skip
            scheduler = Scheduler(running.book, self.gazetteer, self.clock, SHARDS, runs.poke)
            handler = ContextHandler(running.book, self.gazetteer, self.clock, SHARDS, runs.poke, scheduler)
            consumer = await stack.enter_async_context(self.consumer(Topic.FEED))
            others = await stack.enter_async_context(self.consumer(Topic.CONTEXT)) if context else None
            stack.push_async_callback(running.dispatcher.finish)
            stack.push_async_callback(running.stop)
            running.reader = running.notifier.reader = self._reader("notifier", Topic.FEED, consumer, running.notifier)
            running.dispatcher.reader, running.dispatcher.recipient = running.reader, running.notifier.recipient
            running.add(running.relay.run())
            running.add(running.dispatcher.settle())
            if dispatch:
                running.add(running.dispatcher.run())
            running.add(running.reader.run())
            if others is not None:
                scheduler.reader = handler.reader = self._reader("context", Topic.CONTEXT, others, handler)
                running.add(handler.reader.run())
                running.add(scheduler.run())
            yield running


class Ingesting(Running):
    pipeline: Pipeline


@asynccontextmanager
async def opened_site(kafka: str, names: Names, pool: Pool, home: Path) -> AsyncIterator[Site]:
    site = Site(kafka, names, pool, home / "clock.json")
    site.sender, site.log = Sender(kafka), LogReader(kafka)
    await site.sender.start()
    await site.log.start()
    try:
        await site.prepare()
        yield site
    finally:
        await site.log.stop()
        await site.sender.stop()
        # clients ask for all topics when they connect: hundreds of them would make each test slower than the last
        async with admin(kafka) as client:
            await client.delete_topics([names.topic(spec.topic) for spec in SPECS])


def digest_of(user: str, value: bytes) -> bytes:
    return record_digest(user.encode(), value)


def users_of(shard: int, count: int, prefix: str = "u") -> list[str]:
    """User ids that belong to a shard."""
    found = (f"{prefix}-{n}" for n in range(100_000))
    several = (user for user in found if shard_of(user, SHARDS) == shard)
    return [next(several) for _ in range(count)]


@contextlib.contextmanager
def counted(counter: Any, *labels: str) -> Any:
    """How much a metric grows within the block: a list of one number, filled in at the end."""
    one = counter.labels(*labels) if labels else counter
    grown: list[float] = []
    before = one._value.get()
    yield grown
    grown.append(one._value.get() - before)


def numbered(rows: Iterable[Mapping[str, Any]]) -> list[int]:
    return [row["seq"] for row in rows]
