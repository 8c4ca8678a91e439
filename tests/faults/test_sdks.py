"""Official SDKs, unmodified, post to a running gateway; every event counts once for its user, also where the broker is
away in the middle."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import APACHE
from tests.support.installation import Rig
from tests.support.recorder import recording

pytestmark = pytest.mark.asyncio(loop_scope="session")

SDKS = Path(__file__).parents[1] / "support" / "sdks"
USERS, EVENTS = 20, 100
OUTAGE_SECONDS = 30


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the Node SDKs, of exactly the versions in package.json."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("NOT TESTED WITH THE NODE SDKS: node and npm are not on the PATH")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "node_client.mjs"):
        shutil.copy(SDKS / name, folder)
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        pytest.skip(f"NOT TESTED WITH THE NODE SDKS: they could not be installed: {done.stderr[-500:]}")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


async def used(argv: list[str], rig: Rig, url: str, prefix: str, users: int, events: int, seconds: float) -> None:
    """Run a client program to its end; it says that everything was delivered."""
    told = {"HOST": url, "WRITE_KEY": rig.status["write_key"], "PREFIX": prefix, "USERS": str(users)}
    told |= {"EVENTS": str(events), "SECONDS": str(seconds)}
    process = await asyncio.create_subprocess_exec(
        *argv, env={**os.environ, **told}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(seconds + 150):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0 and out.split()[-1:] == [b"0"], f"{out[-500:]!r}\n{err.decode()[-3000:]}"


async def counted(rig: Rig, prefix: str, users: int, events: int) -> None:
    """Wait until every user has searched a city exactly so often, and that was all."""
    await rig.drained()
    found: Counter[int] = Counter()
    for n in range(users):
        user = await rig.user(f"{prefix}{n}")
        found[sum(city["count"] for city in user["cities"]["searched"])] += 1
    assert found == {events: users}


async def clients_count_exactly(rig: Rig, argv_of: dict[str, list[str]], seconds: float = 0.5, tag: str = "") -> None:
    """Each program in turn: thousands of events of all kinds, each counted once for its user."""
    for name, argv in argv_of.items():
        async with recording(rig.status["gateway"]) as front:
            await used(argv, rig, front.url, f"{name}{tag}-", USERS, EVENTS, seconds)
        print(name, dict(front.asked))
        await counted(rig, f"{name}{tag}-", USERS, EVENTS)
    await rig.equal()


def python(kind: str) -> list[str]:
    return [sys.executable, str(SDKS / "python_client.py"), kind]


async def test_python_sdks_count_exactly(rig: Rig) -> None:
    await clients_count_exactly(rig, {f"py-{kind}": python(kind) for kind in ("segment", "rudder")})


@pytest.mark.long
async def test_node_sdks_count_exactly(rig: Rig, node: Path) -> None:
    script = str(node / "node_client.mjs")
    await clients_count_exactly(rig, {f"js-{kind}": ["node", script, kind] for kind in ("segment", "rudder")})


@pytest.mark.long
@pytest.mark.parametrize("broker", [APACHE], indirect=True, scope="session")
async def test_sdks_wait_for_a_broker_that_is_away(rig: Rig, node: Path) -> None:
    """Apache Kafka ends in the middle and comes back: what was answered 503 is posted again, and counts once."""
    script = str(node / "node_client.mjs")
    argv_of = {f"py-{kind}": python(kind) for kind in ("segment", "rudder")}
    argv_of |= {f"js-{kind}": ["node", script, kind] for kind in ("segment", "rudder")}
    started = [
        asyncio.create_task(used(argv, rig, rig.status["gateway"], f"{name}-out-", USERS, EVENTS, 2 * OUTAGE_SECONDS))
        for name, argv in argv_of.items()
    ]
    await asyncio.sleep(OUTAGE_SECONDS / 3)
    async with rig.no_broker():
        await asyncio.sleep(OUTAGE_SECONDS)
    await asyncio.gather(*started)
    for name in argv_of:
        await counted(rig, f"{name}-out-", USERS, EVENTS)
    await rig.equal()
