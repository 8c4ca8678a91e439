"""Time passes only as far as events were read: nobody falls silent while their events wait."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from datetime import time as wall
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import pytest_asyncio

from services.local.environment import ROOT
from shared.process.clock import Clock
from tests.support.installation import Rig, eventually, installed
from tests.support.traffic import DAY, instant

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def timely(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """An installation whose time the test moves."""
    async with installed(tmp_path_factory.mktemp("time"), dev=True) as one:
        yield one


async def tick(home: Path, to: float) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli", "tick", "--to", instant(to), "--home", str(home), cwd=ROOT
    )
    assert await process.wait() == 0


def opening(user: str, number: int, at: float | None = None) -> dict[str, Any]:
    event = {"type": "track", "event": "Application Opened", "userId": user, "messageId": f"{user}-{number}"}
    return event if at is None else {**event, "timestamp": instant(at)}


async def changes(rig: Rig, to: str) -> dict[str, list[tuple[int, str]]]:
    """(moment, cause) of every change of activity to `to`, by user."""
    async with rig.database() as connection:
        rows = await connection.fetch(
            "SELECT user_id, occurred_at, cause_type FROM segmenter.ledger"
            " WHERE kind = 'activity_changed' AND payload->>'to' = $1 ORDER BY shard, seq",
            to,
        )
    found: dict[str, list[tuple[int, str]]] = {}
    for row in rows:
        found.setdefault(row["user_id"], []).append((row["occurred_at"], row["cause_type"]))
    return found


async def watermarks(rig: Rig) -> dict[int, int]:
    async with rig.database() as connection:
        rows = await connection.fetch("SELECT shard, watermark FROM segmenter.shard_time")
    return {row["shard"]: row["watermark"] for row in rows}


async def test_unread_events_hold_time_back(timely: Rig) -> None:
    """31 days pass while ingest is down. Those whose events wait stay active; the others become inactive once, at the
    moment they fell due, when everything is read; an upload three days late moves nothing backwards."""
    rig, home = timely, timely.installation.home.path
    began = time.time()
    waiting, silent = [f"waits-{n}" for n in range(20)], [f"silent-{n}" for n in range(20)]
    await rig.post([opening(user, 1) for user in waiting + silent])
    await rig.drained()
    await rig.without("ingest")
    await tick(home, began + 25 * DAY)
    await asyncio.sleep(0.3)
    await rig.post([opening(user, 2) for user in waiting])
    await tick(home, began + 31 * DAY)
    await asyncio.sleep(3)
    assert await changes(rig, "inactive") == {} and await changes(rig, "at_risk") == {}
    before = await watermarks(rig)
    await rig.back("ingest")

    async def noticed() -> str:
        gone = await changes(rig, "inactive")
        return "" if gone.keys() == set(silent) else f"inactive: {len(gone)} of {len(silent)}"

    await eventually(noticed, 40)
    await rig.drained()
    gone = await changes(rig, "inactive")
    assert all(len(times) == 1 and times[0][1] == "tick" for times in gone.values()), gone
    for [(moment, _)] in gone.values():
        assert 30 * DAY * 1000 <= moment - began * 1000 < 30 * DAY * 1000 + 60_000, "not the moment they fell due"
    after = await watermarks(rig)
    assert all(after[shard] >= mark for shard, mark in before.items())

    await rig.post([opening(user, 3, at=began + 28 * DAY) for user in waiting[:5]])
    await rig.drained()
    later = await watermarks(rig)
    assert all(later[shard] >= mark for shard, mark in after.items())
    assert (await changes(rig, "inactive")).keys() == set(silent)
    counts = await rig.equal()
    assert counts["ticks"] > 0


def living(user: str, city: str, state: str) -> list[dict[str, Any]]:
    device = {"device": {"id": f"phone-{user}", "type": "ios", "token": f"token-{user}"}}
    home = {"type": "track", "event": "Default City Set", "properties": {"city": city, "state": state}}
    return [{**opening(user, 1), "context": device}, {**home, "userId": user, "messageId": f"{user}-home"}]


@pytest.mark.long
async def test_each_zone_is_told_in_its_morning_though_the_notifier_dies_at_seven(timely: Rig) -> None:
    """Killed as the moment comes, in the east and in the west: nobody is told twice, nobody is not."""
    rig, home = timely, timely.installation.home.path
    east, west = [f"east-{n}" for n in range(40)], [f"west-{n}" for n in range(40)]
    await rig.post([event for user in east for event in living(user, "Boston", "MA")])
    await rig.post([event for user in west for event in living(user, "Seattle", "WA")])
    now = Clock(str(home / "clock.json")).now_ms() / 1000
    areas = [{"city": "Boston", "state": "MA"}, {"city": "Seattle", "state": "WA"}]
    holds = {"starts_at": instant(now), "ends_at": instant(now + 3 * DAY)}
    await rig.alert({"id": "today", "kind": "forecast", "areas": areas, **holds, "data": {"summary": "Sunny"}})
    await rig.drained()
    day = datetime.fromtimestamp(now, ZoneInfo("America/New_York")).date() + timedelta(days=1)
    for zone, users in (("America/New_York", east), ("America/Los_Angeles", west)):
        seven = datetime.combine(day, wall(7), ZoneInfo(zone)).timestamp()
        before = rig.pid("notifier")
        await tick(home, seven + 1)
        await asyncio.sleep(0.3)
        rig.kill("notifier")
        rig.allow(unknown=len(users))
        await rig.gone("notifier", before)

        async def told(users: list[str] = users) -> str:
            async with rig.database() as connection:
                rows = await connection.fetch(
                    "SELECT user_id FROM notifier.message WHERE campaign = 'morning_forecast'"
                )
            missing = set(users) - {row["user_id"] for row in rows}
            return f"not told: {sorted(missing)[:3]} …" if missing else ""

        await eventually(told, 60)
    counts = await rig.equal()
    assert counts["schedule_messages"] == len(east) + len(west)
