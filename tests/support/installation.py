"""How a test runs a whole installation: started in a home of its own, broken by pid, drained, and looked into.

The processes are the product's own, started by `services.local.up`; a test may start second ones beside them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import psutil
from prometheus_client.parser import text_string_to_metric_families

from services.local import children
from services.local.apache import ApacheKafka
from services.local.home import is_free
from services.local.program import Program
from services.local.up import SERVICES, Installation, Options, running
from shared.contracts.topics import Topic
from tests.support import oracle, oracle_topics
from tests.support.oracle_fold import NOT_BROUGHT
from tests.support.ports import free_base

QUICK = {
    "PERENNIAL_SEGMENTER_SESSION_SECONDS": "6",
    "PERENNIAL_INGEST_SESSION_SECONDS": "6",
    "PERENNIAL_NOTIFIER_SESSION_SECONDS": "6",
    "PERENNIAL_INGEST_TIME_SECONDS": "1",
}
"""Short sessions, so that a test need not wait half a minute for a dead member to be missed."""

# $1: a delay that is over within so much of the shard's time would be over while somebody looks
_LAGGING = """
SELECT coalesce(string_agg(problem, '; '), '') FROM (
    SELECT 'relay of ' || service || ' ' || shard || ' at ' || relayed || ' of ' || next_seq - 1 AS problem
      FROM spine.shard_owner WHERE relayed < next_seq - 1
    UNION ALL
    SELECT 'notifier ' || o.shard || ' read ' || coalesce(p.last_src, -1) || ' of ' || o.next_seq - 1
      FROM spine.shard_owner o
      LEFT JOIN spine.shard_position p ON p.service = 'notifier' AND p.shard = o.shard
     WHERE o.service = 'segmenter' AND coalesce(p.last_src, -1) < o.next_seq - 1 AND o.next_seq > 1
    UNION ALL
    SELECT 'shard ' || (told.payload->>'shard') || ' was told ' || told.seq || ' by ' || told.shard
      FROM segmenter.outbox told LEFT JOIN spine.shard_position p ON p.service = 'segmenter.merge'
       AND p.shard = (told.payload->>'shard')::int AND p.source LIKE '%/' || told.shard
     WHERE told.kind = 'merge_sent' AND coalesce(p.last_src, -1) < told.seq
    UNION ALL
    SELECT 'message ' || message_id || ' is ' || state FROM notifier.message WHERE state IN ('intent', 'attempted')
    UNION ALL
    SELECT 'message ' || m.message_id || ' comes due' FROM notifier.message m
      JOIN segmenter.shard_time t USING (shard) WHERE m.state = 'waiting' AND m.release_at <= t.watermark + $1
    UNION ALL
    SELECT 'erasure ' || erasure_id || ' is not done' FROM control.erasure WHERE done_at IS NULL
    UNION ALL
    SELECT 'rules walk of ' || shard FROM segmenter.shard_time WHERE rules_cursor IS NOT NULL
    UNION ALL
    SELECT 'run ' || run_id || ' is not expanded over ' || shard FROM notifier.run_shard WHERE NOT done
) AS open
"""
_JUDGED = "SELECT coalesce(max(last_offset), -1) FROM spine.shard_position WHERE service = 'context'"
_APPLIED = "SELECT shard, last_src FROM spine.shard_position WHERE service = 'segmenter'"


async def eventually(look: Callable[[], Awaitable[str]], seconds: float, every: float = 0.2) -> None:
    """Returns once `look` finds nothing to complain of; its last complaint otherwise."""
    deadline = time.monotonic() + seconds
    while problem := await look():
        assert time.monotonic() < deadline, f"after {seconds:g} s still: {problem}"
        await asyncio.sleep(every)


class Rig:
    """A running installation in a test's hands."""

    def __init__(self, installation: Installation, http: aiohttp.ClientSession) -> None:
        self.installation = installation
        self.said: list[str] = []
        self._http = http
        self.spoiled = False
        self.allowed = {"repeated_sends": 0, "unknown": 0}
        self.rate = 1.0
        """How much faster than ours the product's time passed at most."""
        self._extra = 0
        self._stopped: set[int] = set()
        self._others: list[Program] = []
        self._ends: dict[int, int] = {}

    @property
    def status(self) -> dict[str, Any]:
        return self.installation.status

    @property
    def restarts(self) -> dict[str, int]:
        assert self.installation.children is not None
        return self.installation.children.restarts

    def pid(self, name: str) -> int:
        pid = self.status["pids"][name]
        assert isinstance(pid, int), f"{name} does not run"
        return pid

    def log(self, name: str) -> str:
        return (self.installation.home.logs / f"{name}.log").read_text(errors="replace")

    # Breaking.

    def kill(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGKILL)

    def stop(self, pid: int) -> None:
        """Freeze a process; thawed at the end at the latest."""
        os.kill(pid, signal.SIGSTOP)
        self._stopped.add(pid)

    def cont(self, pid: int) -> None:
        os.kill(pid, signal.SIGCONT)
        self._stopped.discard(pid)

    async def frozen(self, pid: int, seconds: float = 40) -> None:
        """Wait until a process has stopped itself at its crash point; thawed at the end at the latest."""
        self._stopped.add(pid)

        async def running() -> str:
            return "" if psutil.Process(pid).status() == psutil.STATUS_STOPPED else f"{pid} has not stopped itself"

        await eventually(running, seconds)

    def thaw(self) -> None:
        for pid in list(self._stopped):
            with contextlib.suppress(ProcessLookupError):
                self.cont(pid)

    async def restart(self, name: str, **env: str) -> None:
        """End a service orderly; it comes back with `env` added, once: its next start is as before."""
        assert self.installation.children is not None
        program = self.installation.children.program(name)
        before, plain = self.pid(name), dict(program.env)
        program.env |= env
        try:
            os.kill(before, signal.SIGTERM)

            async def replaced() -> str:
                return "" if program.pid not in {None, before} else f"{name} was not started again"

            await eventually(replaced, 40)
        finally:
            program.env = plain

    async def arm(self, name: str, crashpoint: str, **env: str) -> int:
        """Have a service end hard (or freeze) at a named point; the pid of the process that will."""
        await self.restart(name, PERENNIAL_CRASHPOINT=crashpoint, **env)
        return self.pid(name)

    async def crash_in_turn(self, name: str, points: Sequence[str], seconds: float = 40) -> None:
        """Have a service end hard at the first point, its successor at the second, and so on; the last one lives."""
        assert self.installation.children is not None
        program = self.installation.children.program(name)
        plain, before = dict(program.env), self.pid(name)
        try:
            program.env = {**plain, "PERENNIAL_CRASHPOINT": points[0]}
            os.kill(before, signal.SIGTERM)
            for point in [*points[1:], ""]:
                await self.gone(name, before, seconds)
                before = self.pid(name)
                program.env = {**plain, "PERENNIAL_CRASHPOINT": point}
            await self.gone(name, before, seconds)
        finally:
            program.env = plain

    async def gone(self, name: str, pid: int, seconds: float = 30) -> None:
        """Wait until the service's process `pid` was replaced."""

        async def replaced() -> str:
            return "" if self.status["pids"][name] not in {None, pid} else f"{name} {pid} still runs"

        await eventually(replaced, seconds)

    async def without(self, name: str) -> None:
        """End a service and leave it ended; `back` starts it."""
        assert self.installation.children is not None
        await self.installation.children.stop(names=[name])

    async def back(self, name: str) -> None:
        assert self.installation.children is not None
        await self.installation.children.start([name])

    async def second(self, name: str, **env: str) -> Program:
        """One more process of a service, with its own port; ended with the installation."""
        assert self.installation.children is not None
        # a member that left a moment ago is missed by its group only when its session ends
        await self.owned(name, self.status[name])
        self._extra += 1
        port = next(
            p for p in range(self.installation.options.port + 30 + self._extra, 65_000) if p % 50 > 29 and is_free(p)
        )
        told = {**self.installation.children.program(name).env, f"PERENNIAL_{name.upper()}_PORT": str(port)}
        told |= {"PERENNIAL_INSTANCE": told["PERENNIAL_INSTANCE"] and f"second-{self._extra}", **env}
        argv = [sys.executable, "-m", SERVICES[name]]
        program = Program(f"{name}-{self._extra + 1}", argv, env=told, log=self.installation.home.logs / f"{name}2.log")
        await program.start()
        self._others.append(program)
        await self.serves(f"http://127.0.0.1:{port}")
        program.env["URL"] = f"http://127.0.0.1:{port}"
        return program

    @asynccontextmanager
    async def no_broker(self) -> AsyncIterator[None]:
        """Apache Kafka ended orderly, and started again on its log behind the block."""
        broker = self.installation.broker
        assert isinstance(broker, ApacheKafka), "the embedded broker would come back empty"
        start, away = broker.start, asyncio.Event()

        async def later() -> str:
            await away.wait()
            return await start()

        broker.start = later  # type: ignore[method-assign]
        try:
            await broker.stop()
            yield
        finally:
            away.set()
            broker.start = start  # type: ignore[method-assign]

    async def owned(self, service: str, *urls: str, seconds: float = 45) -> None:
        """Wait until what the processes at `urls` own adds up to every shard, each owning some."""

        async def orphaned() -> str:
            held = [await self.metric(url, "perennial_owned_shards", service=service) for url in urls]
            whole = sum(held) == self.status["shards"] and min(held) > 0
            return "" if whole else f"{service}: shards owned: {held}"

        await eventually(orphaned, seconds)

    async def end_extra(self) -> None:
        """End the second processes."""
        self.thaw()
        while self._others:
            await self._others.pop().stop(10.0)

    async def serves(self, url: str, seconds: float = 30) -> None:
        async def up() -> str:
            try:
                async with self._http.get(f"{url}/healthz") as answer:
                    return "" if answer.status == 200 else f"{url}: {answer.status}"
            except (aiohttp.ClientError, TimeoutError) as error:
                return f"{url}: {error!r}"

        await eventually(up, seconds)

    # Using.

    async def post(self, events: Sequence[Mapping[str, Any]], attempts: int = 40) -> int:
        """Post a batch until it is taken, as a client does; how many attempts that took."""
        key = base64.b64encode(f"{self.status['write_key']}:".encode()).decode()
        for attempt in range(1, attempts + 1):
            try:
                async with self._http.post(
                    self.status["gateway"] + "/v1/batch",
                    json={"batch": list(events)},
                    headers={"Authorization": f"Basic {key}"},
                ) as answer:
                    if answer.status == 200:
                        return attempt
                    assert answer.status in (429, 500, 503), f"{answer.status}: {await answer.text()}"
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.25)
        raise AssertionError("the gateway took nothing")

    async def post_body(self, path: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Post bytes as they are, once; the answer's status."""
        key = base64.b64encode(f"{self.status['write_key']}:".encode()).decode()
        given = {"Authorization": f"Basic {key}", **{name.title(): value for name, value in headers.items()}}
        async with self._http.post(self.status["gateway"] + path, data=body, headers=given) as answer:
            return answer.status

    async def alert(self, body: Mapping[str, Any], attempts: int = 80) -> None:
        """Post an alert until it is taken; a service that died after taking it is given it again."""
        for _ in range(attempts):
            try:
                async with self._http.post(
                    self.status["notifier"] + "/v1/context",
                    data=io.BytesIO(json.dumps(body).encode()),
                    headers={"Authorization": f"Bearer {self.status['admin_key']}", "Content-Type": "application/json"},
                ) as answer:
                    if answer.status == 202:
                        return
                    assert answer.status in (500, 503), f"{answer.status}: {await answer.text()}"
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.25)
        raise AssertionError("the notifier took no alert")

    async def erase(self, user_id: str, attempts: int = 80) -> str:
        """Ask until it is taken that a user be erased; the receipt."""
        admin = {"Authorization": f"Bearer {self.status['admin_key']}"}
        for _ in range(attempts):
            try:
                async with self._http.delete(f"{self.status['gateway']}/v1/users/{user_id}", headers=admin) as answer:
                    if answer.status == 202:
                        return str((await answer.json())["erasure_id"])
                    assert answer.status == 503, f"{answer.status}: {await answer.text()}"
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.25)
        raise AssertionError("nobody was erased")

    async def erased(self, *erasure_ids: str, seconds: float = 60) -> None:
        """Wait until these requests are done."""
        admin = {"Authorization": f"Bearer {self.status['admin_key']}"}

        async def undone() -> str:
            for erasure_id in erasure_ids:
                async with self._http.get(
                    f"{self.status['gateway']}/v1/erasures/{erasure_id}", headers=admin
                ) as answer:
                    told = await answer.json()
                    if answer.status != 200 or told["state"] != "done":
                        return str(told)
            return ""

        await eventually(undone, seconds)

    async def user(self, user_id: str) -> dict[str, Any]:
        """Where a user stands, as the read API tells it."""
        found: dict[str, Any] = json.loads(await self.page(f"{self.status['segmenter']}/v1/users/{user_id}"))
        return found

    async def page(self, url: str) -> str:
        """What a service answers to whoever holds the admin key."""
        admin = {"Authorization": f"Bearer {self.status['admin_key']}"}
        async with self._http.get(url, headers=admin) as answer:
            text = await answer.text()
            assert answer.status == 200, f"{answer.status}: {text}"
            return text

    async def metric(self, url: str, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry `labels`, as a process at `url` tells it."""
        try:
            async with self._http.get(f"{url}/metrics") as answer:
                text = await answer.text()
        except (aiohttp.ClientConnectionError, TimeoutError):
            return 0.0  # it is only just starting, or frozen
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    @asynccontextmanager
    async def database(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        async with self.installation.database() as connection:
            yield connection

    # The end.

    async def drained(self, seconds: float = 60) -> None:
        """Wait until every raw record is applied, every alert judged, and everything that follows from them was sent."""
        topic = self.status["prefix"] + Topic.RAW.value
        context = self.status["prefix"] + Topic.CONTEXT.value
        posted = (await oracle_topics.ends(self.status["kafka"], context, 1))[0] - 1

        async def ends() -> dict[int, int]:
            self._ends = await oracle_topics.ends(self.status["kafka"], topic, self.status["shards"], self._ends)
            return self._ends

        raw = await ends()
        async with self.database() as connection:

            async def lagging() -> str:
                nonlocal raw
                applied = {row["shard"]: row["last_src"] for row in await connection.fetch(_APPLIED)}
                behind = {s: (applied.get(s, -1), end - 1) for s, end in raw.items() if applied.get(s, -1) < end - 1}
                if behind:
                    return f"raw records are not applied, shard: (applied, last) {behind}"
                if (judged := await connection.fetchval(_JUDGED)) < posted:
                    return f"alerts are judged up to {judged} of {posted}"
                problem = str(await connection.fetchval(_LAGGING, self._soon()))
                if problem:
                    return problem
                now = await ends()
                raw, before = now, raw
                return "" if now == before else "raw still grows"

            await eventually(lagging, seconds)

    def _soon(self) -> int:
        """How far product time comes in the next three seconds."""
        file = self.installation.home.clock_file
        rate = json.loads(file.read_text())["rate"] if self.installation.options.dev else 1.0
        return int(3000 * rate)

    def allow(self, *, repeated_sends: int = 0, unknown: int = 0) -> None:
        """So many more pushes may arrive twice, or stay without a known outcome, from now on."""
        self.allowed["repeated_sends"] += repeated_sends
        self.allowed["unknown"] += unknown

    async def judged(self) -> oracle.Verdict:
        """What the oracle finds, once everything is drained."""
        await self.drained()
        return await oracle.examine(self.status, self.rate, **self.allowed)

    async def equal(self) -> dict[str, int]:
        """Require that the oracle finds no difference; what it compared, counted."""
        self.spoiled = True
        verdict = await self.judged()
        for _ in range(5):
            # time goes on while we look: the sweep may be about to bring someone
            if not verdict.differences or not all(NOT_BROUGHT in one for one in verdict.differences):
                break
            await asyncio.sleep(1)
            verdict = await self.judged()
        shown = "\n".join(verdict.differences[:20])
        assert not verdict.differences, f"{len(verdict.differences)} differences, {verdict.counts}:\n{shown}"
        self.spoiled = False
        return verdict.counts


@asynccontextmanager
async def installed(
    home: Path,
    *,
    pack: str = "weather",
    kafka: str = "embedded",
    shards: int = 4,
    dev: bool = False,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Rig]:
    """An installation with a pack and the push sandbox, on free ports."""
    told = {**QUICK, **(env or {})}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    said: list[str] = []
    options = Options(home, free_base(), kafka=kafka, packs=(pack,), sandbox=True, dev=dev, shards=shards)
    try:
        async with (
            running(options, said.append) as installation,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15)) as http,
        ):
            assert installation.children is not None
            # what a test kills several times in a row comes back at once
            installation.children.longest_pause_seconds = children.FIRST_PAUSE_SECONDS
            rig = Rig(installation, http)
            rig.said = said
            assert not any("not ready" in line for line in said), said
            try:
                yield rig
            finally:
                await rig.end_extra()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
