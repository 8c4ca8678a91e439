"""How official SDKs are used and what they posted is counted: each in a program of its own, told by its environment."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.installation import Rig

SDKS = Path(__file__).parent
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
