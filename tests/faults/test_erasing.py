"""Erased, however the services die meanwhile: no table, no later record and no later log line holds the user."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from shared.contracts.topics import Topic
from tests.support import oracle_topics
from tests.support.installation import Rig
from tests.support.oracle_snapshot import pushes_of
from tests.support.oracle_topics import Seen
from tests.support.tables import rows_that_hold
from tests.support.traffic import CITIES, Storms, Traffic, instant

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOLD = (Topic.FEED, Topic.CHANGES, Topic.OUTCOMES, Topic.DEAD_LETTERS)
"""What tells of users. Raw and the decisions hold what was posted, for as long as they keep it."""
CRASHES = {
    "segmenter": ["segmenter.in_transaction:3", "segmenter.after_commit:3", "relay.after_send:3"],
    "notifier": ["notifier.in_transaction:3", "notifier.after_commit:3", "relay.before_send:2"],
}


def life(user: str, now: float) -> list[dict[str, Any]]:
    """Somebody with a phone, in cities that storms come to; the last two events are refused."""
    phone = {"device": {"id": f"{user}-phone", "type": "ios", "token": f"{user}-token"}, "timezone": "America/Chicago"}
    events: list[tuple[str, dict[str, Any]]] = [
        ("Application Opened", {"context": phone}),
        *(("City Added", {"properties": {"city": city}}) for city in CITIES[:6]),
        ("Default City Set", {"properties": {"city": CITIES[0]}}),
        ("City Searched", {"properties": {"city": CITIES[7]}}),
        ("City Added", {"properties": {"city": f"Nowhere, {user}"}}),
        ("City Added", {}),
    ]
    return [
        {"type": "track", "event": name, "userId": user, "messageId": f"{user}-{n}", "timestamp": instant(now), **more}
        for n, (name, more) in enumerate(events)
    ]


async def records(rig: Rig) -> dict[Topic, dict[int, list[Seen]]]:
    status = rig.status
    return {
        topic: await oracle_topics.read(status["kafka"], status["prefix"] + topic.value, status["shards"])
        for topic in TOLD
    }


def holds(record: Seen, user: str) -> bool:
    needle = user.encode()
    return any(needle in (part or b"") for part in (record.key, record.value, *record.headers.values()))


def logs(rig: Rig) -> dict[Path, int]:
    """Every log, and how long it is."""
    return {path: path.stat().st_size for path in sorted(rig.installation.home.logs.iterdir())}


def lines_behind(sizes: dict[Path, int], rig: Rig, users: Iterable[str]) -> list[str]:
    """What was logged since that names one of them."""
    found = []
    for path in logs(rig):
        later = path.read_bytes()[sizes.get(path, 0) :].decode(errors="replace")
        found += [f"{path.name}: {line}" for line in later.splitlines() if any(user in line for user in users)]
    return found


@pytest.mark.parametrize("crashes", [{}, pytest.param(CRASHES, marks=pytest.mark.long)], ids=["in peace", "in crashes"])
async def test_nothing_of_erased_users_is_left(rig: Rig, crashes: dict[str, list[str]]) -> None:
    """Users with a story are erased under load, also while segmenter and notifier are ended hard, one point after the
    other; then they come again, and are not taken in."""
    users = [f"erasable-{time.time_ns()}-{n:02}" for n in range(12)]
    waves = [users[n::4] for n in range(4)]
    for user in users:
        await rig.post(life(user, time.time()))
    await rig.drained()
    async with rig.database() as connection:
        await connection.execute(
            "INSERT INTO control.replay (replay_id, filters, upto, finished_at, cancelled)"
            " VALUES ('rp-' || md5($1), json_build_object('user', $1), '{}', now(), true)",
            users[0],
        )
        held = {table for table, _ in await rows_that_hold(connection, users[0])}
        assert {table.partition("_2")[0] for table in held} >= {
            "segmenter.user_state", "segmenter.cohort_member", "segmenter.ledger", "segmenter.outbox",
            "notifier.recipient", "notifier.message", "notifier.outcome", "control.replay",
        }, held  # fmt: skip
    if crashes:
        rig.allow(unknown=600, repeated_sends=600 * len(crashes["notifier"]))
    before = logs(rig)
    receipts: list[str] = []

    async def erase(waves: list[list[str]]) -> None:
        for wave in waves:
            for user in wave:
                receipts.append(await rig.erase(user))
                receipts.append(await rig.erase(user))
            await asyncio.sleep(1 if crashes else 0)

    async with Traffic(3001, users=60).during(rig, storms=Storms(3001)):
        for service, mine in (("segmenter", waves[:2]), ("notifier", waves[2:])):
            async with asyncio.TaskGroup() as group:
                group.create_task(erase(mine))
                if service in crashes:
                    group.create_task(rig.crash_in_turn(service, crashes[service]))
        await rig.erased(*receipts)
        done = time.time()
        for user in users:
            await rig.post(life(user, time.time()))
    await rig.drained()
    async with rig.database() as connection:
        left = [row for user in users for row in await rows_that_hold(connection, user)]
    assert not left
    for topic, log in (await records(rig)).items():
        for user in users:
            (named,) = [several for several in log.values() if any(holds(r, user) for r in several)] or [[]]
            last = max((n for n, record in enumerate(named) if holds(record, user)), default=-1)
            assert last < 0 or named[last].timestamp / 1000 <= done, f"{topic} tells of {user} after all was done"
            if topic in (Topic.FEED, Topic.CHANGES):
                assert b"user_erased" in (named[last].value or b""), f"{topic} tells of {user} after their erasure"
    assert not lines_behind(before, rig, users)
    tokens = {f"{user}-token" for user in users}
    late = [
        p for p in await pushes_of(rig.status["sandbox"]) if p["token"] in tokens and p["received_at"] > instant(done)
    ]
    assert not late
    await rig.equal()
