"""Where a measurement takes place: one broker and one Postgres for the whole bench, and for each measurement an
installation of its own on them, with only the services it needs, each a process with production settings.

A service that is not measured just now is frozen, so that what runs beside it has the machine to itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiokafka.admin import NewTopic
from prometheus_client.parser import text_string_to_metric_families

from services.bench import usage
from services.bench.figures import Round, used
from services.bench.helper import Helper
from services.local import migrate, topics
from services.local.apache import ApacheKafka
from services.local.broker import EmbeddedBroker
from services.local.children import Children, Say
from services.local.database import connected
from services.local.home import OFFSETS, Home, check_ports, is_free
from services.local.postgres import EmbeddedPostgres
from services.local.program import LocalError
from services.local.up import SERVICES, Installation, Options
from shared.contracts.identifiers import fresh_id, shard_of
from shared.contracts.topics import Topic
from shared.data.db import Connection
from shared.kafka.log_reader import LogReader
from shared.kafka.sender import Record, Sender
from shared.process.clock import monotonic

PACK = "weather"
BARE_GATEWAY_OFFSET = 4


class Servers:
    """The broker and the database all measurements share."""

    def __init__(
        self, home: Path, port: int, broker: EmbeddedBroker | ApacheKafka | None, address: str, say: Say
    ) -> None:
        self.home, self.port, self.broker, self.address, self.say = home, port, broker, address, say
        self.postgres = EmbeddedPostgres(home, "bench")

    @property
    def pids(self) -> dict[str, int | None]:
        return {"kafka": self.broker.pid if self.broker else None, "postgres": self.postgres.pid}


@asynccontextmanager
async def servers(home: Path, port: int, kafka: str, say: Say) -> AsyncIterator[Servers]:
    """Started in `home`, which is the caller's to remove; `kafka` is embedded, apache or HOST:PORT."""
    kind = Options(kafka=kafka).broker
    check_ports(port, [*(name for name in OFFSETS if name != "kafka"), *(["kafka"] if kind else [])])
    if not is_free(port + BARE_GATEWAY_OFFSET):
        raise LocalError(f"port {port + BARE_GATEWAY_OFFSET} (bare gateway) is already in use: choose another --port")
    found = Servers(home, port, kind(home, port + OFFSETS["kafka"]) if kind else None, kafka, say)
    async with AsyncExitStack() as stack:
        stack.callback(found.postgres.destroy)
        say("Postgres")
        stack.push_async_callback(found.postgres.stop)
        await found.postgres.start()
        if found.broker is not None:
            say("Apache Kafka" if isinstance(found.broker, ApacheKafka) else "Kafka broker (embedded)")
            stack.push_async_callback(found.broker.stop)
            found.address = await found.broker.start()
        yield found


class Site:
    """One measurement's installation, its services running."""

    def __init__(
        self, shared: Servers, installation: Installation, database: Connection, reader: LogReader, sender: Sender,
        http: aiohttp.ClientSession, stack: AsyncExitStack,
    ) -> None:  # fmt: skip
        self.servers, self.installation, self.database = shared, installation, database
        self.reader, self.sender, self.http, self._stack = reader, sender, http, stack
        self.shards = installation.options.shards
        self.helpers: dict[str, Helper] = {}
        self._shard: dict[str, int] = {}
        self._frozen: set[str] = set()
        stack.callback(self.thaw)

    @property
    def children(self) -> Children:
        assert self.installation.children is not None
        return self.installation.children

    def topic(self, topic: Topic | str) -> str:
        return f"{self.installation.options.names.prefix}{topic}"

    def shard_of(self, user_id: str) -> int:
        shard = self._shard.get(user_id)
        if shard is None:
            shard = self._shard[user_id] = shard_of(user_id, self.shards)
        return shard

    @property
    def headers(self) -> dict[str, str]:
        """What a phone sends with each post."""
        return {"Authorization": aiohttp.encode_basic_auth(self.installation.keys.write, "")}

    async def fill(self, topic: Topic, records: Mapping[int, Sequence[Record]]) -> None:
        """Append to a topic's partitions, acknowledged."""
        for partition, several in records.items():
            await self.sender.send(self.topic(topic), partition, several)

    async def make_topic(self, name: str) -> str:
        """A topic for a ceiling's output, with as many partitions as the product's."""
        async with topics.admin(self.servers.address) as client:
            await client.create_topics([NewTopic(self.topic(name), self.shards, 1)], timeout_ms=15_000)
        return self.topic(name)

    async def helper(self, name: str, module: str, setup: Mapping[str, Any]) -> None:
        """Start one of the bench's own programs, frozen until it is asked."""
        helper = Helper(f"services.bench.{module}", self.servers.home / "logs")
        self._stack.push_async_callback(helper.stop)
        await helper.start(setup)
        self.helpers[name] = helper
        self._stack.callback(self.thaw, name)
        self.freeze(name)

    # -- who runs

    def freeze(self, *names: str) -> None:
        """Stop these services or helpers (all services, if none is named) where they stand, also one that only waits:
        it would go on fetching. For less than a session, or a service loses its shards."""
        for name in names or self.children.pids():
            self._signal(name, signal.SIGSTOP)
            self._frozen.add(name)

    def thaw(self, *names: str) -> None:
        """Let these go on; all that are frozen, if none is named."""
        for name in names or list(self._frozen):
            self._signal(name, signal.SIGCONT)
            self._frozen.discard(name)

    def _signal(self, name: str, number: signal.Signals) -> None:
        pid = self.helpers[name].pid if name in self.helpers else self.children.pids().get(name)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    # -- measuring

    def cpu(self) -> dict[str, float]:
        """Processor time so far of every process of the measurement that runs here."""
        helpers = {name: helper.pid for name, helper in self.helpers.items()}
        return usage.cpu_seconds({**self.servers.pids, **self.children.pids(), **helpers})

    def resident_mb(self, name: str) -> float | None:
        return usage.resident_mb(self.children.pids().get(name))

    async def metric(self, service: str, name: str) -> float:
        """The sum of a metric's samples."""
        async with self.http.get(f"{self.installation.url(service)}/metrics") as answer:
            families = text_string_to_metric_families(await answer.text())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    async def timed(self, events: int, done: Callable[[], Awaitable[bool]], *services: str, seconds: float) -> Round:
        """Thaw the services, wait until they are done, freeze them again."""
        before, began = self.cpu(), monotonic()
        self.thaw(*services)
        await until(done, seconds)
        ended, after = monotonic(), self.cpu()
        self.freeze(*services)
        return Round(events, ended - began, used(before, after))

    async def ask(self, helper: str, what: Mapping[str, Any]) -> dict[str, Any]:
        """A helper's answer; it is frozen before and after."""
        self.thaw(helper)
        try:
            return await self.helpers[helper].ask(what)
        finally:
            self.freeze(helper)

    async def asked(self, helper: str, what: Mapping[str, Any]) -> Round:
        """One round of a helper's, by its own clock."""
        before = self.cpu()
        told = await self.ask(helper, what)
        cpu = used(before, self.cpu())
        return Round(told["events"], told["seconds"], cpu, told.get("p50_ms"), told.get("p99_ms"))


async def until(true: Callable[[], Awaitable[bool]], seconds: float, every: float = 0.02) -> None:
    """LocalError unless it comes true in time."""
    deadline = monotonic() + seconds
    while not await true():
        if monotonic() > deadline:
            raise LocalError(f"a round of the bench was not done after {seconds:.0f} s")
        await asyncio.sleep(every)


@asynccontextmanager
async def site(
    shared: Servers, services: Sequence[str], *, standin: bool = False, sandbox: bool = False
) -> AsyncIterator[Site]:
    """An installation with the weather pack and these services, ready; its topics and tables are gone afterwards.

    With `standin` pushes go to a stand-in that only counts them, in the sandbox's place.
    """
    name = fresh_id("bench")[:13]
    commands = {one: [sys.executable, "-m", SERVICES[one]] for one in SERVICES if one in services}
    if standin:
        commands["sandbox"] = [sys.executable, "-m", "services.bench.standin"]
    elif sandbox:
        commands["sandbox"] = [sys.executable, "-m", SERVICES["sandbox"]]
    options = Options(
        shared.home / name, shared.port, shared.address, app=name, packs=(PACK,), sandbox=standin or sandbox,
        commands=commands, salt="bench",
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        dsn = await _database(shared, options.database, stack)
        home = Home(options.home)
        stack.enter_context(home.lock())
        installation = Installation(options, home, shared.say)
        installation.broker, installation.kafka, installation.dsn = shared.broker, shared.address, dsn
        await migrate.upgrade(dsn)
        stack.push_async_callback(_forget_topics, shared.address, options)
        await installation.adopt_log()
        await installation.prepare()
        await installation.start_services(stack)
        if late := await installation.until_ready():
            raise LocalError(f"{', '.join(late)} did not get ready; see {home.logs}")
        database = await stack.enter_async_context(connected(dsn))
        reader, sender = LogReader(shared.address), Sender(shared.address)
        await reader.start()
        stack.push_async_callback(reader.stop)
        await sender.start()
        stack.push_async_callback(sender.stop)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
        yield Site(shared, installation, database, reader, sender, http, stack)


async def _database(shared: Servers, name: str, stack: AsyncExitStack) -> str:
    server = shared.postgres.dsn("postgres")

    async def drop() -> None:
        async with connected(server) as admin:
            await admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async with connected(server) as admin:
        await admin.execute(f'CREATE DATABASE "{name}"')
    stack.push_async_callback(drop)
    return shared.postgres.dsn(name)


async def _forget_topics(address: str, options: Options) -> None:
    async with topics.admin(address) as client:
        await client.delete_topics(
            [name for name in await client.list_topics() if name.startswith(options.names.prefix)]
        )
