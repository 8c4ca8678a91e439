"""Apache Kafka is away for a minute under load: no post hangs, memory keeps its bound, and what was answered 200 is in the log."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from shared.contracts.topics import Topic
from tests.faults.conftest import APACHE
from tests.support.installation import Rig

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.long,
    pytest.mark.parametrize("broker", [APACHE], indirect=True, scope="session"),
]

AWAY_SECONDS = 60
CLIENTS = 300
EVENTS = 10
PAD = "x" * 29_000
DEADLINE_SECONDS = 5.0
"""The gateway's own: by default it waits so long for the broker."""
BOUND_BYTES = 64_000_000
"""What the gateway holds for the broker, by default."""


class Load:
    """Clients that post 300 KB at a time: together more than the gateway may hold."""

    def __init__(self, rig: Rig, tag: str) -> None:
        self._rig, self._tag = rig, tag
        self.answers: Counter[int] = Counter()
        self.slowest: dict[int, float] = {}
        self.taken: set[str] = set()
        self.after = Counter[int]()
        self.back_at = float("inf")
        self.ended = False

    async def client(self, http: aiohttp.ClientSession, number: int) -> None:
        auth = {"Authorization": aiohttp.encode_basic_auth(self._rig.status["write_key"], "")}
        url, post = self._rig.status["gateway"] + "/v1/batch", 0
        await asyncio.sleep(number / CLIENTS * 5)
        while not self.ended:
            post += 1
            ids = [f"{self._tag}-{number}-{post}-{n}" for n in range(EVENTS)]
            events = [
                {
                    "type": "track",
                    "event": "Application Opened",
                    "userId": f"{self._tag}-{number}",
                    "messageId": one,
                    "pad": PAD,
                }
                for one in ids
            ]
            began = time.monotonic()
            async with http.post(url, data=json.dumps({"batch": events}).encode(), headers=auth) as answer:
                await answer.read()
                status = answer.status
                retry = answer.headers.get("Retry-After")
            took = time.monotonic() - began
            self.answers[status] += 1
            self.slowest[status] = max(self.slowest.get(status, 0.0), took)
            if began > self.back_at:
                self.after[status] += 1
            if status == 200:
                self.taken.update(ids)
                await asyncio.sleep(5)
            else:
                assert retry is not None
                await asyncio.sleep(float(retry))


async def in_raw(rig: Rig, tag: str) -> set[str]:
    """The message ids of the load's records in raw."""
    consumer: Any = AIOKafkaConsumer(
        bootstrap_servers=rig.status["kafka"], auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        topic = rig.status["prefix"] + Topic.RAW.value
        parts = [TopicPartition(topic, shard) for shard in range(rig.status["shards"])]
        ends = await consumer.end_offsets(parts)
        consumer.assign(parts)
        await consumer.seek_to_beginning(*parts)
        found: set[str] = set()
        async with asyncio.timeout(120):
            while any([await consumer.position(tp) < ends[tp] for tp in parts]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    ids = (dict(record.headers).get("message_id", b"").decode() for record in records)
                    found.update(one for one in ids if one.startswith(tag))
        return found
    finally:
        await consumer.stop()


@asynccontextmanager
async def frozen(rig: Rig) -> Any:
    """Kafka's process stands still: connections stay open, and nothing answers."""
    pid = rig.pid("kafka")
    rig.stop(pid)
    try:
        yield
    finally:
        rig.cont(pid)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", ["frozen", "ended"])
async def test_a_minute_without_kafka(rig: Rig, how: str) -> None:
    load, gateway = Load(rig, f"bp-{how}"), psutil.Process(rig.pid("gateway"))
    before, peak = gateway.memory_info().rss, 0

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, gateway.memory_info().rss)
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    timeout = aiohttp.ClientTimeout(total=DEADLINE_SECONDS * 4)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
        clients = [asyncio.create_task(load.client(http, n)) for n in range(CLIENTS)]
        await asyncio.sleep(15)
        assert load.answers[200] > CLIENTS and set(load.answers) == {200}
        async with frozen(rig) if how == "frozen" else rig.no_broker():
            await asyncio.sleep(AWAY_SECONDS)
        await asyncio.sleep(10)
        load.back_at = time.monotonic()
        await asyncio.sleep(10)
        load.ended = True
        await asyncio.gather(*clients)
    watching.cancel()
    print(how, dict(load.answers), load.slowest, f"rss {before / 1e6:.0f} to {peak / 1e6:.0f} MB", dict(load.after))
    assert set(load.answers) <= {200, 429, 503} and load.answers[503] > 100
    assert max(load.slowest.values()) < DEADLINE_SECONDS + 3, "clients and server share two cores"
    assert peak - before < 3 * BOUND_BYTES
    assert set(load.after) == {200}, "ten seconds after it is back, all is well"
    missing = load.taken - await in_raw(rig, load._tag)
    assert not missing, f"{len(missing)} of {len(load.taken)} acknowledged events are not in the log"
    await rig.equal()
