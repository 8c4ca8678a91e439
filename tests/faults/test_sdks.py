"""Official SDKs of servers, unmodified, post to a running gateway; every event counts once for its user, also where the
broker is away in the middle."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import APACHE
from tests.support.installation import Rig
from tests.support.recorder import recording
from tests.support.sdks.using import EVENTS, OUTAGE_SECONDS, SDKS, USERS, counted, used

pytestmark = pytest.mark.asyncio(loop_scope="session")


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
