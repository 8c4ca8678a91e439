"""`up` as a whole, with stand-ins for the services: its order, its restarts, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from services.local import doctor
from services.local.children import Children
from services.local.up import SERVICES
from tests.support.ports import free_base

ROOT = Path(__file__).resolve().parents[2]
LONG = 60.0


class Up:
    """One `up` in a process of its own; `lines` is what it said."""

    def __init__(self, process: asyncio.subprocess.Process, home: Path, port: int) -> None:
        self.process = process
        self.home = home
        self.port = port
        self.lines: list[str] = []

    async def until(self, word: str) -> str:
        """The next line that holds `word`."""
        assert self.process.stdout is not None
        async with asyncio.timeout(LONG):
            async for line in self.process.stdout:
                self.lines.append(line.decode().rstrip())
                if word in self.lines[-1]:
                    return self.lines[-1]
        raise AssertionError(f"it ended without {word!r}: {self.lines}")

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "status.json").read_text())
        return found

    def living(self) -> list[psutil.Process]:
        return [found for pid in self.status["pids"].values() if pid and (found := _process(pid)) is not None]


def _process(pid: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid)
    return None


def ended(process: psutil.Process) -> bool:
    """Gone, or a zombie that only its parent's parent has yet to reap."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE or not process.is_running())
    return True


async def eventually(true: Callable[[], object], what: str) -> None:
    try:
        async with asyncio.timeout(LONG):
            while not true():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"never came true: {what}") from None


@asynccontextmanager
async def up(home: Path, port: int, *more: str) -> AsyncIterator[Up]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.local_up",
        str(home),
        str(port),
        *more,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = Up(process, home, port)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.communicate(), LONG)


@pytest.fixture
def home(server_home: Path, request: pytest.FixtureRequest) -> Path:
    return server_home / f"up-{abs(hash(request.node.name)) % 10_000}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_stops_everything_in_order_and_a_second_start_finds_the_data(
    home: Path, number: signal.Signals
) -> None:
    """Senders stop before receivers, so the last events still arrive; and no process is left."""
    async with up(home, free_base()) as first:
        await first.until("READY")
        status = first.status
        assert set(status["pids"]) == {*SERVICES, "kafka", "postgres"}
        assert status["embedded"] == ["kafka", "postgres"]
        assert await doctor.examine(status) == []
        living = first.living()
        assert len(living) == len(SERVICES) + 2
        first.process.send_signal(number)
        await first.until("interrupted")
        assert await asyncio.wait_for(first.process.wait(), LONG) == 0
    assert all(map(ended, living))
    assert (home / "ends").read_text().split() == list(SERVICES)
    assert not (home / "status.json").exists()
    async with up(home, first.port) as second:
        await second.until("READY")
        again = second.status
        assert (again["write_key"], again["admin_key"]) == (status["write_key"], status["admin_key"])
        connection = await asyncpg.connect(again["postgres"])
        assert await connection.fetchval("SELECT count(*) FROM control.rules") == 1
        await connection.close()
        assert any("the log is a new one" in line for line in second.lines)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
async def test_a_killed_up_leaves_no_process(home: Path) -> None:
    async with up(home, free_base()) as running:
        await running.until("READY")
        living = running.living()
        running.process.kill()
        await running.process.wait()
        await eventually(lambda: all(map(ended, living)), "every child ended")
        async with up(home, running.port) as again:
            await again.until("READY")


async def test_a_child_that_dies_is_started_again_and_said(home: Path) -> None:
    async with up(home, free_base()) as running:
        await running.until("READY")
        before = running.status["pids"]
        os.kill(before["ingest"], signal.SIGKILL)
        assert "killed by signal 9" in await running.until("ingest ended")
        await eventually(lambda: running.status["pids"]["ingest"] not in (None, before["ingest"]), "a new ingest")
        after = running.status["pids"]
        assert {name: pid for name, pid in after.items() if name != "ingest"} == {
            name: pid for name, pid in before.items() if name != "ingest"
        }


async def test_a_child_is_mourned_before_its_successor_starts(tmp_path: Path) -> None:
    """The broker has to hear that the member is dead before another one asks for its shards."""
    mourned: list[tuple[int, bool]] = []

    async def mourn(pid: int) -> None:
        mourned.append((pid, children.program("one").pid is None))

    commands = {"one": [sys.executable, "-c", "import time; time.sleep(60)"]}
    children = Children(commands, dict(os.environ), tmp_path, lambda _: None, mourn=mourn)
    await children.start()
    try:
        pid = children.pids()["one"]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: children.pids()["one"] not in (None, pid), "a successor")
    finally:
        await children.stop()
    assert mourned == [(pid, True)], "one that is stopped on purpose has left by itself"


async def test_a_dead_broker_is_a_new_log_and_the_services_meet_it_only_then(home: Path) -> None:
    """A service that went on would append to the new log under the old log's name."""
    async with up(home, free_base()) as running:
        await running.until("READY")
        before = running.status
        connection = await asyncpg.connect(before["postgres"])
        log_id = await connection.fetchval("SELECT log_id FROM control.installation")
        os.kill(before["pids"]["kafka"], signal.SIGKILL)
        await running.until("the log is a new one")
        await eventually(
            lambda: (
                None not in running.status["pids"].values()
                and running.status["pids"]["kafka"] != before["pids"]["kafka"]
            ),
            "everything runs again",
        )
        assert await connection.fetchval("SELECT log_id FROM control.installation") != log_id
        await connection.close()
        after = running.status["pids"]
        changed = {name for name in after if after[name] != before["pids"][name]}
        assert changed == {"gateway", "ingest", "segmenter", "notifier", "archive", "kafka"}


async def test_a_dead_postgres_comes_back_with_its_data(home: Path) -> None:
    async with up(home, free_base()) as running:
        await running.until("READY")
        before = running.status
        os.kill(before["pids"]["postgres"], signal.SIGKILL)
        await running.until("postgres ended")
        await eventually(
            lambda: running.status["pids"]["postgres"] not in (None, before["pids"]["postgres"]), "a new one"
        )
        connection = await asyncpg.connect(running.status["postgres"])
        assert await connection.fetchval("SELECT count(*) FROM control.rules") == 1
        await connection.close()


async def test_a_busy_port_and_a_busy_home_are_one_sentence_each(home: Path, server_home: Path) -> None:
    async with up(home, free_base()) as running:
        await running.until("READY")
        async with up(server_home / "other", running.port) as second:
            line = await second.until("refused")
            assert f"{running.port + 3} (ingest)" in line
            assert "--port" in line
        async with up(home, free_base()) as third:
            assert f"in use by process {running.process.pid}" in await third.until("refused")


@pytest.mark.kafka
@pytest.mark.usefixtures("apache_kafka")
async def test_apache_kafka_keeps_its_log_over_a_restart(home: Path) -> None:
    port = free_base()
    for attempt in range(2):
        async with up(home, port, "apache") as running:
            await running.until("READY")
            assert running.status["embedded"] == ["postgres"]
            assert not any("the log is a new one" in line for line in running.lines), attempt
