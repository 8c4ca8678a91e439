"""What is wrong with a running installation, each problem one sentence with its remedy."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import aiohttp

from services.local.database import connected
from services.local.program import LocalError
from services.local.topics import check_topics
from services.local.up import SERVICES, ready_path
from shared.contracts.topics import Names


async def examine(status: dict[str, Any]) -> list[str]:
    """Processes, HTTP, Postgres and definitions, Kafka and topics."""
    problems = processes(status["pids"], status)
    problems += await readiness(status)
    problems += await database(status)
    try:
        problems += await check_topics(status["kafka"], Names(status.get("prefix", "")), int(status["shards"]))
    except LocalError as error:
        problems.append(str(error))
    return problems


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def processes(pids: dict[str, int | None], status: dict[str, Any]) -> list[str]:
    problems = []
    for name, pid in pids.items():
        if pid is None:
            if name in SERVICES and status.get(name):
                problems.append(f"{name} is not running; its log says why: {status['home']}/logs/{name}.log")
        elif not alive(pid):
            problems.append(f"{name} (pid {pid}) is gone; end `perennial up` and start it again")
    return problems


def checks(service: str) -> tuple[tuple[str, str], ...]:
    ready = (ready_path(service), "is not ready")
    return (ready,) if service == "sandbox" else (("/healthz", "makes no progress"), ready)


async def readiness(status: dict[str, Any]) -> list[str]:
    problems = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        for name in SERVICES:
            url = status.get(name)
            if not url:
                continue
            for path, wrong in checks(name):
                try:
                    async with session.get(url + path) as answer:
                        if answer.status != 200:
                            problems.append(f"{name} {wrong} ({(await answer.text())[:200]}); see logs/{name}.log")
                except (aiohttp.ClientError, TimeoutError):
                    problems.append(f"{name} does not answer at {url}; see {status['home']}/logs/{name}.log")
                    break
    return problems


async def database(status: dict[str, Any]) -> list[str]:
    problems: list[str] = []
    try:
        async with connected(status["postgres"]) as connection:
            row = None
            with contextlib.suppress(Exception):  # a missing table and a missing row have the same remedy
                row = await connection.fetchrow("SELECT shards, sending FROM control.installation")
            if row is None:
                return ["the database holds no installation: run `perennial migrate`"]
            if row["shards"] != status["shards"]:
                problems.append(
                    f"the installation has {row['shards']} shards, the services {status['shards']}: restart them"
                )
            if not row["sending"]:
                problems.append("all sending is stopped: DELETE /v1/kill at the notifier allows it again")
            if not await connection.fetchval("SELECT count(*) FROM control.rules"):
                problems.append("there are no definitions yet: run `perennial apply weather`")
    except LocalError as error:
        problems.append(str(error))
    return problems
