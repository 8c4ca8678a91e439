"""The gateway as a process, on a real broker and a real Postgres: starting without them, outliving them, stopping."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.partitioner import murmur2

from services.local import topics
from services.local.broker import EmbeddedBroker
from shared.contracts.topics import Names, Topic
from tests.support.ports import free_port

SHARDS = 4
KEY = "test-key"
SHA = hashlib.sha256(KEY.encode()).hexdigest()
AUTH = {"Authorization": aiohttp.encode_basic_auth(KEY, "")}
EVENT = {"type": "track", "event": "Opened", "userId": "u"}

MakeTopics = Callable[[str, int], Coroutine[Any, Any, Names]]


class Gateway:
    """A running gateway: its process, its address, and a client session."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, session: aiohttp.ClientSession) -> None:
        self.process, self.url, self.session = process, url, session

    async def post(self, path: str, body: Any, auth: bool = True) -> tuple[int, dict[str, Any]]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(f"{self.url}{path}", data=data, headers=AUTH if auth else {}) as answer:
            return answer.status, await answer.json()

    async def until(self, status: int, path: str = "/readyz", seconds: float = 20) -> str:
        """The answer's text once `path` answers `status`."""
        seen: object = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    assert self.process.returncode is None, "the gateway ended"
                    try:
                        async with self.session.get(f"{self.url}{path}") as answer:
                            seen = answer.status, await answer.text()
                            if answer.status == status:
                                return await answer.text()
                    except aiohttp.ClientError as error:
                        seen = error
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{path} never answered {status}; last: {seen}") from None


@asynccontextmanager
async def gateway(kafka: str, postgres: str, home: Path, prefix: str = "") -> AsyncIterator[Gateway]:
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PERENNIAL_")},
        "PERENNIAL_KAFKA": kafka,
        "PERENNIAL_POSTGRES": postgres,
        "PERENNIAL_HOME": str(home),
        "PERENNIAL_PREFIX": prefix,
        "PERENNIAL_SHARDS": str(SHARDS),
        "PERENNIAL_GATEWAY_PORT": str(port),
        "PERENNIAL_GATEWAY_DEADLINE_SECONDS": "2",
        "PERENNIAL_GATEWAY_KEYS_SECONDS": "0.2",
        "PERENNIAL_GATEWAY_PROBE_SECONDS": "0.3",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.ingest.gateway", env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with aiohttp.ClientSession() as session:
            yield Gateway(process, f"http://127.0.0.1:{port}", session)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def raw_records(kafka: str, names: Names, count: int) -> list[Any]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka, auto_offset_reset="earliest", enable_auto_commit=False, fetch_max_wait_ms=20
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(names.topic(Topic.RAW), shard) for shard in range(SHARDS)])
        found: list[Any] = []
        async with asyncio.timeout(20):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    found += records
        return found
    finally:
        await consumer.stop()


async def add_key(postgres: str) -> None:
    connection = await asyncpg.connect(postgres)
    await connection.execute("INSERT INTO control.key (sha256, kind, source) VALUES ($1, 'write', 'app')", SHA)
    await connection.close()


def keep_key(home: Path) -> None:
    (home / "gateway").mkdir(parents=True)
    (home / "gateway" / "keys.json").write_text(json.dumps({SHA: "app"}))


async def test_what_is_posted_stands_in_raw(kafka: str, topics_of: MakeTopics, postgres: str, tmp_path: Path) -> None:
    """Every accepted event once, byte for byte, in its user's partition."""
    names = await topics_of(kafka, SHARDS)
    await add_key(postgres)
    async with gateway(kafka, postgres, tmp_path, names.prefix) as running:
        await running.until(200)
        elements = [
            json.dumps({**EVENT, "userId": f"u-{n}", "messageId": f"m-{n}", "pad": "é" * n}) for n in range(300)
        ]
        bodies = [f'{{"batch":[{", ".join(elements[n : n + 30])}]}}'.encode() for n in range(0, 300, 30)]
        answers = await asyncio.gather(*(running.post("/v1/batch", gzip.compress(body)) for body in bodies))
        assert answers == [(200, {"success": True})] * 10
        found = await raw_records(kafka, names, 300)
        assert sorted(record.value.decode() for record in found) == sorted(elements)
        for record in found:
            assert record.partition == (murmur2(record.key) & 0x7FFFFFFF) % SHARDS
            headers = dict(record.headers)
            assert list(headers) == ["received_at", "sent_at", "type", "message_id", "source", "mode"]
            assert headers["message_id"] == record.key.replace(b"u-", b"m-")
            assert abs(int(headers["received_at"]) - record.timestamp) < 60_000


async def test_segments_own_client_is_served(
    embedded_kafka: str, topics_of: MakeTopics, postgres: str, tmp_path: Path
) -> None:
    analytics = pytest.importorskip("segment.analytics")
    names = await topics_of(embedded_kafka, SHARDS)
    await add_key(postgres)
    errors: list[object] = []
    async with gateway(embedded_kafka, postgres, tmp_path, names.prefix) as running:
        await running.until(200)

        def use() -> None:
            client = analytics.Client(
                KEY, host=running.url, gzip=True, max_retries=1, on_error=lambda error, _: errors.append(error)
            )
            client.identify("u-1", {"plan": "free"})
            for n in range(25):
                client.track("u-1", "City Searched", {"city": f"Town {n}"})
            client.screen("u-1", "Home", "Start")
            client.flush()
            client.join()

        await asyncio.to_thread(use)
        found = await raw_records(embedded_kafka, names, 27)
    assert errors == []
    assert [dict(record.headers)["type"] for record in found] == [b"identify"] + [b"track"] * 25 + [b"screen"]
    assert [json.loads(r.value)["properties"]["city"] for r in found[1:26]] == [f"Town {n}" for n in range(25)]
    assert all(dict(record.headers)["sent_at"].isdigit() for record in found)


async def test_it_starts_without_broker_and_database_and_outlives_the_broker(tmp_path: Path) -> None:
    """No crash loop: 503 while the broker is away, 200 when it is there, again and again; keys from the kept copy."""
    port, names = free_port(), Names("")
    keep_key(tmp_path)
    nowhere = "postgresql://postgres@127.0.0.1:9/perennial"
    async with gateway(f"127.0.0.1:{port}", nowhere, tmp_path) as running:
        await running.until(200, "/healthz")
        assert "broker" in await running.until(503)
        assert (await running.post("/v1/track", EVENT))[0] == 503
        for life in range(2):
            broker = EmbeddedBroker(tmp_path, port)
            address = await broker.start()
            try:
                assert "broker" in await running.until(503), "without the topic it cannot be ready"
                await topics.ensure_topics(address, names, SHARDS)
                await running.until(200)
                assert (await running.post("/v1/track", {**EVENT, "event": f"life {life}"}))[0] == 200
                [record] = await raw_records(address, names, 1)
                assert json.loads(record.value)["event"] == f"life {life}"
            finally:
                await broker.stop()
            assert (await running.post("/v1/track", EVENT))[0] == 503
            await running.until(503)
        assert "known keys stay in force" not in await running.until(200, "/healthz")
        assert running.process.returncode is None


async def test_a_revoked_key_ends_within_moments(
    embedded_kafka: str, topics_of: MakeTopics, postgres: str, tmp_path: Path
) -> None:
    names = await topics_of(embedded_kafka, SHARDS)
    await add_key(postgres)
    async with gateway(embedded_kafka, postgres, tmp_path, names.prefix) as running:
        await running.until(200)
        assert (await running.post("/v1/track", EVENT))[0] == 200
        connection = await asyncpg.connect(postgres)
        await connection.execute("UPDATE control.key SET revoked_at = now()")
        await connection.close()
        async with asyncio.timeout(10):
            while (await running.post("/v1/track", EVENT))[0] != 401:
                await asyncio.sleep(0.05)


async def test_another_number_of_partitions_is_refused(
    embedded_kafka: str, topics_of: MakeTopics, tmp_path: Path
) -> None:
    """Shards are fixed; a gateway that went on would send users to partitions that are not theirs."""
    names = await topics_of(embedded_kafka, SHARDS * 2)
    async with gateway(embedded_kafka, "", tmp_path, names.prefix) as running:
        async with asyncio.timeout(20):
            _, errors = await running.process.communicate()
        assert running.process.returncode == 3, "a refusal to go on has its own code, so that nobody restarts it"
        assert b"8 partitions, but this installation has 4 shards" in errors


async def test_a_request_in_flight_at_the_end_is_still_answered(
    embedded_kafka: str, topics_of: MakeTopics, postgres: str, tmp_path: Path
) -> None:
    """What got a 200 is in raw, and nothing is cut off half-way."""
    names = await topics_of(embedded_kafka, SHARDS)
    await add_key(postgres)
    async with gateway(embedded_kafka, postgres, tmp_path, names.prefix) as running:
        await running.until(200)
        taken = 0

        async def one() -> bool:
            body = {"batch": [{**EVENT, "userId": f"u-{n}"} for n in range(50)]}
            try:
                return (await running.post("/v1/batch", body))[0] == 200
            except aiohttp.ClientConnectionError:
                return False

        async def many() -> int:
            count = 0
            while await one():
                count += 1
            return count

        posting = [asyncio.create_task(many()) for _ in range(8)]
        await asyncio.sleep(0.5)
        running.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            taken = sum(await asyncio.gather(*posting))
            _, errors = await running.process.communicate()
        assert running.process.returncode == 0, errors
        assert taken > 0
        assert len(await raw_records(embedded_kafka, names, taken * 50)) >= taken * 50
