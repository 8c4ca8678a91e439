"""Somebody writes to raw in transactions: what they abort never happened, and one that hangs is told of and costs nothing
once it is ended. Only Apache Kafka has transactions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from aiokafka import AIOKafkaProducer

from shared.contracts.identifiers import shard_of
from shared.contracts.topics import Topic
from tests.faults.conftest import APACHE
from tests.support import prometheus
from tests.support.installation import Rig, eventually
from tests.support.traffic import Traffic

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.long,
    pytest.mark.parametrize("broker", [APACHE], indirect=True, scope="session"),
]


def search(user: str, message_id: str) -> dict[str, Any]:
    properties = {"city": "Dallas, TX"}
    return {
        "type": "track",
        "event": "City Searched",
        "userId": user,
        "messageId": message_id,
        "properties": properties,
    }


class Foreign:
    """A transactional producer of somebody else's; the next one of its name has its open transaction aborted."""

    def __init__(self, rig: Rig, name: str) -> None:
        self._topic = rig.status["prefix"] + Topic.RAW.value
        self.producer = AIOKafkaProducer(
            bootstrap_servers=rig.status["kafka"], transactional_id=f"foreign-{name}", transaction_timeout_ms=600_000
        )

    async def write(self, user: str, message_id: str) -> None:
        """One event under its user's id, in the partition Java's default partitioner chooses."""
        await self.producer.send(self._topic, json.dumps(search(user, message_id)).encode(), user.encode())

    async def __aenter__(self) -> Self:
        await self.producer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.wait({asyncio.ensure_future(self.producer.stop())}, timeout=5)


async def searches(rig: Rig, prefix: str) -> dict[str, int]:
    """How often each user whose id begins so has searched."""
    async with rig.database() as connection:
        query = "SELECT user_id FROM segmenter.user_state WHERE starts_with(user_id, $1)"
        users = [row["user_id"] for row in await connection.fetch(query, prefix)]
    return {user: sum(city["count"] for city in (await rig.user(user))["cities"]["searched"]) for user in users}


async def test_what_was_aborted_never_happened(rig: Rig) -> None:
    """Transactions that end either way, between and around ordinary posts."""
    async with Foreign(rig, "turns") as foreign, Traffic(4801, users=80).during(rig):
        for turn in range(40):
            kind = "aborted" if turn % 2 else "committed"
            await foreign.producer.begin_transaction()
            for n in range(25):
                await foreign.write(f"tx-{kind}-{n}", f"tx-{turn}-{n}")
            await foreign.producer.flush()
            await (foreign.producer.abort_transaction() if turn % 2 else foreign.producer.commit_transaction())
    await rig.equal()
    assert await searches(rig, "tx-") == {f"tx-committed-{n}": 20 for n in range(25)}


@asynccontextmanager
async def watching(rig: Rig, home: Path) -> AsyncIterator[prometheus.Prometheus]:
    async with prometheus.running(home, {job: rig.status[job] for job in prometheus.JOBS}) as found:
        yield found


@pytest.mark.timeout(400)
async def test_a_transaction_that_hangs_is_told_of(rig: Rig, tmp_path: Path) -> None:
    """Its shard stands, also over a restart of ingest, and no other. A log line says where, an alert that. Once it is
    aborted, all that lay behind it comes in."""
    users = [f"hang-{n}" for n in range(20)]
    shard = shard_of(users[0], rig.status["shards"])
    others = {user for user in users if shard_of(user, rig.status["shards"]) != shard}

    async def only_others(times: int) -> None:
        async def otherwise() -> str:
            found = await searches(rig, "hang-")
            return "" if found == dict.fromkeys(others, times) else f"searches: {found}"

        await eventually(otherwise, 30)

    async def logged() -> str:
        lines = [json.loads(line) for line in rig.log("ingest").splitlines() if "open transaction" in line]
        found = [(line["level"], line["partition"]) for line in lines]
        return "" if found == [("error", shard)] else f"said: {found}"

    async with watching(rig, tmp_path / "watching") as seen, Foreign(rig, "hangs") as foreign:

        async def alerts(*wanted: str) -> None:
            async def otherwise() -> str:
                firing = (await seen.firing(hastened=True)).get("PerennialInputHeld", [])
                found = tuple(one["service"] for one in firing)
                return "" if found == wanted else f"fires for {found}, not for {wanted}"

            await eventually(otherwise, 40)

        await foreign.producer.begin_transaction()
        await foreign.write(users[0], "never")
        await foreign.producer.flush()
        await rig.post([search(user, f"m-{user}") for user in users])
        await only_others(1)
        await alerts("ingest")
        await eventually(logged, 60)
        await rig.restart("ingest")
        await rig.owned("ingest", rig.status["ingest"])
        await rig.post([search(user, f"m-{user}-after") for user in others])
        await only_others(2)
        await alerts("ingest")
        async with Foreign(rig, "hangs"):
            await alerts()
    await rig.equal()
    assert await searches(rig, "hang-") == {user: 2 if user in others else 1 for user in users}
