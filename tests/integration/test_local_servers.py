"""The embedded servers and what `migrate` leaves in them."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import psutil
import pytest
from aiokafka import AIOKafkaProducer

from services.local import definitions, keys, migrate, restoring, topics
from services.local.broker import EmbeddedBroker
from services.local.postgres import EmbeddedPostgres, end_leftover
from services.local.program import LocalError
from shared.contracts.events import FeedTime, encode
from shared.contracts.topics import SPECS, Names, Topic
from shared.data.db import Connection
from shared.data.keys import key_hash
from shared.kafka.log_reader import LogReader
from tests.support.brokers import MakeTopics
from tests.support.ports import free_port


@pytest.fixture
async def connection(postgres: str) -> AsyncIterator[Connection]:
    held = await asyncpg.connect(postgres)
    yield held
    await held.close()


async def test_postgres_keeps_its_data_and_survives_a_kill(server_home: Path) -> None:
    """kill -9 leaves a pid file behind, and a pid that anybody may have by the next start."""
    home = server_home / "restarts"
    home.mkdir()
    server = EmbeddedPostgres(home)
    try:
        connection = await asyncpg.connect(await server.start())
        await connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
        await connection.close()
        assert server.program is not None
        server.program.kill()
        await server.wait()
        assert server.lodging is not None
        (server.lodging.data / "postgres" / "postmaster.pid").write_text(f"{os.getpid()}\n")
        again = EmbeddedPostgres(home)
        connection = await asyncpg.connect(await again.start())
        assert await connection.fetchval("SELECT n FROM kept") == 7
        await connection.close()
        await again.stop()
    finally:
        await server.stop()
        server.destroy()


async def test_a_server_left_running_on_the_data_is_ended(server_home: Path) -> None:
    """Only where the pid file names a server on this data: end_leftover must spare everyone else."""
    home = server_home / "leftover"
    home.mkdir()
    first = EmbeddedPostgres(home)
    await first.start()
    assert first.lodging is not None
    second = EmbeddedPostgres(home)
    try:
        connection = await asyncpg.connect(await second.start())
        await connection.close()
        assert first.pid is None or await asyncio.wait_for(first.wait(), 10) is not None
        await second.stop()
        await end_leftover(first.lodging.data / "postgres")
    finally:
        await second.stop()
        second.destroy()


async def test_postgres_is_no_users_but_ours(postgres_server: EmbeddedPostgres) -> None:
    """No TCP, a socket folder that only the server's user enters, and never as root."""
    assert postgres_server.socket is not None
    assert stat.S_IMODE(postgres_server.socket.stat().st_mode) == 0o700
    assert psutil.Process(postgres_server.pid).uids().real != 0
    connection = await asyncpg.connect(postgres_server.dsn())
    assert await connection.fetchval("SHOW listen_addresses") == ""
    assert await connection.fetchval("SHOW jit") == "off"
    await connection.close()


async def test_a_long_home_gets_a_short_socket(server_home: Path) -> None:
    home = server_home / ("long" * 30)
    home.mkdir()
    server = EmbeddedPostgres(home)
    try:
        await server.start()
        assert len(str(server.socket)) < 100
    finally:
        await server.stop()
        server.destroy()


async def test_migrations_at_once_wait_for_each_other(postgres_server: EmbeddedPostgres) -> None:
    admin = await asyncpg.connect(postgres_server.dsn("postgres"))
    await admin.execute("CREATE DATABASE at_once")
    try:
        dsn = postgres_server.dsn("at_once")
        await asyncio.gather(*(migrate.upgrade(dsn) for _ in range(4)))
        connection = await asyncpg.connect(dsn)
        assert await connection.fetchval("SELECT count(*) FROM control.installation") == 0
        await connection.close()
    finally:
        await admin.execute("DROP DATABASE at_once WITH (FORCE)")
        await admin.close()


async def test_the_number_of_shards_never_changes(connection: Connection) -> None:
    first = await migrate.adopt_log(connection, 4, "cluster")
    assert first.first
    assert not (await migrate.adopt_log(connection, 4, "cluster")).replaced
    with pytest.raises(LocalError, match="made with 4 shards and PERENNIAL_SHARDS says 8"):
        await migrate.adopt_log(connection, 8, "cluster")


async def test_a_new_log_has_what_the_notifier_has_not_read(connection: Connection) -> None:
    """Rows acknowledged by a log that is gone, but unread, would otherwise never be pushed."""
    await migrate.adopt_log(connection, 3, "old")
    await connection.execute(
        "INSERT INTO spine.shard_owner (service, shard, gen, next_seq, relayed) "
        "VALUES ('segmenter', 0, 1, 51, 50), ('segmenter', 1, 2, 51, 50), ('segmenter', 2, 1, 51, 50)"
    )
    await connection.execute(
        "INSERT INTO spine.shard_position (service, shard, source, log_id, last_gen, last_src) "
        "VALUES ('notifier', 0, 'user.feed.v1', 'old', 1, 40), ('notifier', 1, 'user.feed.v1', 'old', 1, 40)"
    )
    assert not (await migrate.adopt_log(connection, 3, "old")).replaced
    assert await connection.fetchval("SELECT min(relayed) FROM spine.shard_owner") == 50
    assert (await migrate.adopt_log(connection, 3, "new")).replaced
    relayed = await connection.fetch("SELECT relayed FROM spine.shard_owner ORDER BY shard")
    assert [row["relayed"] for row in relayed] == [40, 0, 0], "read, read under an older generation, never read"


async def test_topics_are_made_once_and_never_changed(kafka: str) -> None:
    names = Names(f"made-{free_port()}.")
    assert len(await topics.ensure_topics(kafka, names, 4)) == len(SPECS)
    assert await topics.ensure_topics(kafka, names, 4) == []
    assert await topics.check_topics(kafka, names, 4) == []
    with pytest.raises(LocalError, match="has 4 partitions and this installation needs 6"):
        await topics.ensure_topics(kafka, names, 6)


async def test_a_broker_that_is_not_there_is_one_sentence() -> None:
    port = free_port()
    with pytest.raises(LocalError, match=f"no Kafka broker answers at 127.0.0.1:{port}"):
        await topics.check_topics(f"127.0.0.1:{port}", Names(), 4)


async def test_a_broker_on_a_busy_port_says_so(server_home: Path, embedded_kafka: str) -> None:
    """Whoever answers on the port must be the process that was started."""
    port = int(embedded_kafka.rpartition(":")[2])
    second = EmbeddedBroker(server_home / "embedded", port)
    with pytest.raises(LocalError, match="already in use"):
        await second.start()
    await second.stop()


async def test_keys_last_while_they_are_valid(connection: Connection, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first = await keys.ensure(connection, path)
    assert await keys.ensure(connection, path) == first
    stored = await connection.fetch("SELECT sha256 FROM control.key")
    assert key_hash(first.write) in {row["sha256"] for row in stored}
    assert first.write not in json.dumps([dict(row) for row in stored])
    await keys.revoke(connection, "app")
    second = await keys.ensure(connection, path)
    assert second.write != first.write
    assert second.admin == first.admin
    with pytest.raises(LocalError, match="there is a key for the source 'app' already"):
        await keys.create(connection, "write", "app")
    with pytest.raises(LocalError, match="no valid key"):
        await keys.revoke(connection, "nobody")


async def test_an_applied_pack_is_not_applied_twice_and_can_be_rolled_back(connection: Connection) -> None:
    assert "rules version 1 installed" in await definitions.apply(connection, "weather")
    assert "in force already" in await definitions.apply(connection, "weather")
    assert "rules version 2 installed" in await definitions.apply(connection, "commerce")
    assert "rules version 3 says what 1 said" in await definitions.rollback(connection, 1)
    with pytest.raises(LocalError, match="no such pack"):
        await definitions.apply(connection, "nowhere")


async def test_after_a_restore_numbers_go_on_behind_what_readers_saw(
    connection: Connection, kafka: str, topics_of: MakeTopics
) -> None:
    """Readers keep the greatest (gen, seq): a repeated number would be dropped as already seen."""
    names = await topics_of(kafka, 2)
    await connection.execute(
        "INSERT INTO spine.shard_owner (service, shard, next_seq, epoch) VALUES ('segmenter', 1, 5, 9)"
    )
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    await producer.send_and_wait(names.topic(Topic.FEED), encode(FeedTime(3, 70, 0)), partition=1)
    await producer.stop()
    reader = LogReader(kafka)
    await reader.start()
    try:
        assert len(await restoring.restore(connection, reader, names, 2, print)) == 1
    finally:
        await reader.stop()
    row = await connection.fetchrow("SELECT gen, next_seq, epoch FROM spine.shard_owner WHERE service = 'segmenter'")
    assert row is not None
    assert dict(row) == {"gen": 4, "next_seq": 71, "epoch": 10}
