"""In which order an installation starts on one machine, what keeps it running, and how it ends.

Lock the home, check the ports, Postgres, migrations, broker, topics, the log's identity, keys, packs, services. The
services come last because each of them requires all of the rest; everything stops in the reverse order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from services.local import definitions, groups, keys, migrate, topics
from services.local.apache import ApacheKafka
from services.local.broker import EmbeddedBroker
from services.local.children import Children, Say, ending, pause_seconds
from services.local.database import connected
from services.local.environment import environment, sandbox_environment, write_fcm_account
from services.local.home import OFFSETS, Home, check_ports
from services.local.postgres import EmbeddedPostgres
from services.local.program import LocalError
from shared.contracts.topics import Names
from shared.process.clock import Clock, monotonic, write_clock

SERVICES = {
    "gateway": "services.ingest.gateway",
    "ingest": "services.ingest.consumer",
    "segmenter": "services.segmenter",
    "notifier": "services.notifier",
    "archive": "services.archive",
    "sandbox": "services.demo.sandbox",
}
"""In the order they stop."""

READY_SECONDS = 60.0


def default_shards() -> int:
    return int(os.environ.get("PERENNIAL_SHARDS", "32"))


@dataclass(frozen=True)
class Options:
    """What the command line asked for. `kafka` is `embedded`, `apache` or HOST:PORT; `postgres` `embedded` or a DSN."""

    home: Path = Path(".perennial")
    port: int = 8080
    kafka: str = "embedded"
    postgres: str = "embedded"
    app: str = ""
    packs: tuple[str, ...] = ()
    sandbox: bool = False
    dev: bool = False
    shards: int = field(default_factory=default_shards)
    archive: str = field(default_factory=lambda: os.environ.get("PERENNIAL_ARCHIVE_PATH", ""))
    """Folder the log is archived in; empty: it is not."""
    salt: str = ""
    """Decides who is held out; empty: a new installation's own."""
    commands: dict[str, list[str]] | None = None
    """The services' command lines, where they are not the product's own (tests)."""

    @property
    def names(self) -> Names:
        return Names(f"{self.app}." if self.app else "")

    @property
    def database(self) -> str:
        return f"perennial_{self.app}" if self.app else "perennial"

    @property
    def ports(self) -> list[str]:
        """The processes that need a port of this machine."""
        return self.services + (["kafka"] if self.broker is not None else [])

    @property
    def services(self) -> list[str]:
        """The services that are started here, in the order they stop."""
        wanted = {"sandbox": self.sandbox, "archive": bool(self.archive)}
        return [name for name in SERVICES if wanted.get(name, True)]

    @property
    def broker(self) -> type[EmbeddedBroker | ApacheKafka] | None:
        """What runs the log here; None when it runs elsewhere."""
        kinds: dict[str, type[EmbeddedBroker | ApacheKafka]] = {"embedded": EmbeddedBroker, "apache": ApacheKafka}
        return kinds.get(self.kafka)


class Installation:
    """A running installation: addresses, keys, processes. `status` is `status.json`."""

    def __init__(self, options: Options, home: Home, say: Say) -> None:
        self.options = options
        self.home = home
        self.say = say
        self.kafka = options.kafka
        self.dsn = options.postgres
        self.keys = keys.Keys("", "")
        self.broker: EmbeddedBroker | ApacheKafka | None = None
        self.postgres: EmbeddedPostgres | None = None
        self.children: Children | None = None
        self.ready = False
        self._watchers: list[asyncio.Task[None]] = []

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.options.port + OFFSETS[service]}"

    @property
    def embedded(self) -> list[str]:
        return [
            name
            for name, held in (("kafka", self.options.kafka == "embedded"), ("postgres", self.postgres is not None))
            if held
        ]

    @property
    def status(self) -> dict[str, Any]:
        pids: dict[str, int | None] = dict.fromkeys(SERVICES)
        pids |= self.children.pids() if self.children is not None else {}
        pids["kafka"] = self.broker.pid if self.broker is not None else None
        pids["postgres"] = self.postgres.pid if self.postgres is not None else None
        return {
            "gateway": self.url("gateway"),
            "segmenter": self.url("segmenter"),
            "notifier": self.url("notifier"),
            "ingest": self.url("ingest"),
            "archive": self.url("archive") if self.options.archive else None,
            "sandbox": self.url("sandbox") if self.options.sandbox else None,
            "kafka": self.kafka,
            "postgres": self.dsn,
            "write_key": self.keys.write,
            "admin_key": self.keys.admin,
            "pids": pids,
            "embedded": self.embedded,
            "home": str(self.home.path),
            "prefix": self.options.names.prefix,
            "shards": self.options.shards,
            "dev": self.options.dev,
        }

    # -- start, step by step

    async def start_servers(self, stack: AsyncExitStack) -> None:
        """Postgres with its schema; then the broker, so that on the way down it stops first."""
        if self.options.postgres == "embedded":
            fresh = "" if (self.home.path / "logs" / "postgres.log").exists() else ", setting it up"
            self.say(f"Postgres (embedded; data stays{fresh})")
            self.postgres = EmbeddedPostgres(self.home.path, self.options.database)
            stack.push_async_callback(self.postgres.stop)
            self.dsn = await self.postgres.start()
        self.say("database schema")
        await migrate.upgrade(self.dsn)
        kind = self.options.broker
        if kind is not None:
            if kind is EmbeddedBroker:
                self.say("Kafka broker (embedded, in memory: it keeps nothing over a restart)")
            else:
                self.say("Apache Kafka (its log stays in the home; the first start fetches it)")
            self.broker = kind(self.home.path, self.options.port + OFFSETS["kafka"])
            stack.push_async_callback(self.broker.stop)
            self.kafka = await self.broker.start()
        await self.adopt_log()

    async def adopt_log(self) -> None:
        """Makes the topics and tells the installation which log they are in; no service may run."""
        await topics.ensure_topics(self.kafka, self.options.names, self.options.shards)
        async with self.database() as connection:
            change = await migrate.adopt_log(connection, self.options.shards, await topics.cluster_id(self.kafka))
            if change.first and self.options.salt:
                await connection.execute("UPDATE control.installation SET salt = $1", self.options.salt)
        if change.replaced:
            self.say("the log is a new one: users, history and messages stay; events nobody had read yet are gone")

    async def prepare(self) -> None:
        """Keys, time, definitions and the sandbox's account."""
        async with self.database() as connection:
            self.keys = await keys.ensure(connection, self.home.keys_file)
            for pack in self.options.packs:
                self.say(f"pack {pack}: {await definitions.apply(connection, pack)}")
        if self.options.dev and not self.home.clock_file.exists():
            write_clock(self.home.clock_file, Clock().real_ms())
        if self.options.sandbox:
            write_fcm_account(self.home, self.url("sandbox"))

    async def start_services(self, stack: AsyncExitStack) -> None:
        names = self.options.services
        commands = self.options.commands or {name: [sys.executable, "-m", SERVICES[name]] for name in names}
        embedded = isinstance(self.broker, EmbeddedBroker)
        env = environment(
            self.home,
            kafka=self.kafka,
            postgres=self.dsn,
            port=self.options.port,
            shards=self.options.shards,
            prefix=self.options.names.prefix,
            sandbox=self.options.sandbox,
            dev=self.options.dev,
            quick_groups=embedded,
        )
        mourn = partial(groups.dismiss, self.kafka, self.options.names) if embedded else None
        self.children = Children(commands, env, self.home.logs, self.say, self.changed, mourn)
        if "sandbox" in commands:
            asked = sandbox_environment(self.url("notifier"), self.url("segmenter"), self.keys.admin)
            self.children.program("sandbox").env |= asked
        stack.push_async_callback(self.children.stop)
        await self.children.start()
        stack.push_async_callback(self._stop_watching)
        for server in (self.broker, self.postgres):
            if server is not None:
                self._watchers.append(asyncio.create_task(self._keep(server), name="keep-server"))

    async def until_ready(self, seconds: float = READY_SECONDS) -> list[str]:
        """Waits until every service says it is ready; returns those that did not in time."""
        assert self.children is not None
        waiting = [name for name in self.children.pids() if name in SERVICES]
        deadline = monotonic() + seconds
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while waiting and monotonic() < deadline:
                for name in list(waiting):
                    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                        async with session.get(self.url(name) + ready_path(name)) as answer:
                            if answer.status == 200:
                                waiting.remove(name)
                await asyncio.sleep(0.1)
        return waiting

    # -- while it runs

    def changed(self) -> None:
        """Keeps `status.json` true; it appears once everything is ready, so that its being there means that."""
        if self.ready:
            self.home.write_status(self.status)

    async def _keep(self, server: EmbeddedBroker | ApacheKafka | EmbeddedPostgres) -> None:
        """Starts a server again when it ends unasked.

        A broker that kept nothing gives a new log, which the services may only meet after `adopt_log`.
        """
        name = "postgres" if isinstance(server, EmbeddedPostgres) else "kafka"
        attempt = 0
        while True:
            code = await server.wait()
            self.changed()
            pause = pause_seconds(attempt)
            attempt = min(attempt + 1, 6)
            self.say(f"{name} ended ({ending(code)}); starting it again in {pause:g} s")
            await asyncio.sleep(pause)
            try:
                if isinstance(server, EmbeddedBroker):
                    await self._replace_broker(server)
                else:
                    await server.start()
            except LocalError as error:
                self.say(str(error))
            self.changed()

    async def _replace_broker(self, broker: EmbeddedBroker) -> None:
        assert self.children is not None
        services = [name for name in self.children.pids() if name != "sandbox"]
        await self.children.stop(names=services)
        await broker.start()
        await self.adopt_log()
        await self.children.start(services)

    async def _stop_watching(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        async with connected(self.dsn) as connection:
            yield connection


def ready_path(service: str) -> str:
    """Where a service says that it is ready; the sandbox, a stand-in for others, answers as soon as it listens."""
    return "/pushes/count" if service == "sandbox" else "/readyz"


@asynccontextmanager
async def running(options: Options, say: Say = print) -> AsyncIterator[Installation]:
    """Everything started and ready; stopped again at the end, however it comes."""
    home = Home(options.home)
    with home.lock():
        home.clear_status()
        check_ports(options.port, options.ports, os.environ.get("PERENNIAL_BIND", "127.0.0.1"))
        installation = Installation(options, home, say)
        async with AsyncExitStack() as stack:
            stack.callback(home.clear_status)
            await installation.start_servers(stack)
            await installation.prepare()
            say("services")
            await installation.start_services(stack)
            for name in await installation.until_ready():
                say(f"{name} is not ready after {READY_SECONDS:.0f} s; see {home.logs / (name + '.log')}")
            installation.ready = True
            installation.changed()
            yield installation
