"""Whatever happens between reading a record and committing it, it is applied exactly once — or the reader stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asyncpg.transaction import Transaction

from shared.contracts.identifiers import record_digest
from shared.contracts.topics import Topic
from shared.data import shard_owner
from shared.data.db import Connection, connect_pool, transaction
from shared.data.shard_owner import Owner, Position
from shared.kafka import fenced_reader
from shared.kafka.fenced_reader import FencedReader, OwnedShard
from shared.kafka.proof import prove
from shared.kafka.sender import Record
from shared.kafka.shard_consumer import Polled, Reassigned
from shared.process.errors import Fenced, LogReplaced, Transient
from shared.process.http import Health
from shared.process.metrics import BUGS, FENCED, TRANSIENT
from tests.support.spine import SHARDS, ByHand, Running, Site, counted, until


class Counting(Running):
    """A worker that writes down each offset it applies, and can be told to stumble."""

    reader: FencedReader
    consumer: ByHand

    def __init__(self) -> None:
        super().__init__()
        self.in_write: Any = None
        self.in_handle: Any = None
        self.suspected: list[Exception] = []
        self.dropped = 0
        self.took: list[float] = []

    async def take(self, connection: Connection, shards: Mapping[int, OwnedShard]) -> None:
        self.took.append(time.monotonic())

    async def taken(self) -> None:
        return

    def drop(self) -> None:
        self.dropped += 1

    async def handle(self, polled: Polled) -> None:
        if self.in_handle is not None:
            await self.in_handle(polled)
        offsets = [(shard, r.offset) for shard, records in polled.records.items() for r in records]
        positions = {
            shard: self.reader.advanced(shard, next(reversed(polled.records.get(shard, [])), None), behind)
            for shard, behind in polled.positions.items()
        }

        async def write(connection: Connection, owners: Mapping[int, Owner]) -> None:
            await connection.executemany("INSERT INTO seen VALUES ($1, $2)", offsets)
            for owner in owners.values():
                owner.next_seq += 1
            if self.in_write is not None:
                await self.in_write(connection)

        await self.reader.commit(positions, positions, write)

    async def idle(self) -> None:
        return

    def suspect(self, error: Exception) -> None:
        self.suspected.append(error)


@asynccontextmanager
async def _counting(site: Site, *, numbers_survive: bool = False) -> AsyncIterator[Counting]:
    await site.pool.execute("CREATE TABLE IF NOT EXISTS seen (shard int, off bigint)")
    worker = Counting()
    worker.consumer = ByHand(site.kafka, site.topic(Topic.EVENTS), SHARDS)
    await worker.consumer.start()
    worker.reader = FencedReader(
        service="test",
        topic=site.topic(Topic.EVENTS),
        consumer=worker.consumer,
        reader=site.log,
        pool=site.pool,
        worker=worker,
        health=Health(),
        numbers_survive=numbers_survive,
        max_records=3,
        heartbeat_seconds=0.01,
    )
    try:
        yield worker
    finally:
        await worker.stop()
        await worker.consumer.stop()


async def _write(site: Site, start: int, count: int) -> None:
    for shard in range(SHARDS):
        await site.produce(
            Topic.EVENTS, shard, *(Record(b"k", b"%d-%d" % (shard, n)) for n in range(start, start + count))
        )


async def _seen(site: Site) -> list[tuple[int, int]]:
    return [(row["shard"], row["off"]) for row in await site.rows("SELECT shard, off FROM seen ORDER BY 1, 2")]


def _all(count: int) -> list[tuple[int, int]]:
    return [(shard, n) for shard in range(SHARDS) for n in range(count)]


async def _applied(site: Site, count: int) -> None:
    async def there() -> bool:
        return len(await _seen(site)) >= len(_all(count))

    await until(there)
    await asyncio.sleep(0.1)
    assert await _seen(site) == _all(count)


async def test_reading_goes_on_exactly_where_it_ended(any_site: Site) -> None:
    """Across a rebalance, and across a restart with another owner."""
    site = any_site
    await _write(site, 0, 10)
    async with _counting(site) as one:
        one.add(one.reader.run())
        await _applied(site, 10)
        one.consumer.reassign()
        await _write(site, 10, 5)
        await _applied(site, 15)
    await _write(site, 15, 5)
    async with _counting(site) as two:
        two.add(two.reader.run())
        await _applied(site, 20)
        epochs = {owned.owner.epoch for owned in two.reader.shards.values()}
    assert epochs == {3}


async def test_a_former_owner_writes_nothing(site: Site) -> None:
    """A zombie that wakes in the middle of its batch: its epoch is gone, and with it its transaction."""
    await _write(site, 0, 3)
    async with _counting(site) as zombie:
        await zombie.reader._take_over()
        async with transaction(site.pool) as connection:
            await shard_owner.acquire(connection, "test", [0], "another", [site.topic(Topic.EVENTS)], "log-1")
        polled = await zombie.consumer.fetch(range(SHARDS), timeout_ms=2000, max_records=10)
        assert polled.records
        with pytest.raises(Fenced):
            await zombie.handle(polled)
        if 0 not in polled.records:
            with pytest.raises(Fenced):
                await zombie.reader.commit([0], {}, _nothing)
    assert (0, 0) not in await _seen(site)


async def _nothing(connection: Connection, owners: Mapping[int, Owner]) -> None:
    return


async def test_whoever_is_fenced_but_still_assigned_takes_over_again(site: Site) -> None:
    """Fenced is not lost: the other may have been the zombie, and then nobody else would serve the shard."""
    await _write(site, 0, 6)
    async with _counting(site) as worker:
        stolen = asyncio.Event()

        async def steal(_: Polled) -> None:
            if not stolen.is_set():
                stolen.set()
                async with transaction(site.pool) as connection:
                    await shard_owner.acquire(
                        connection, "test", range(SHARDS), "another", [site.topic(Topic.EVENTS)], "log-1"
                    )

        worker.in_handle = steal
        with counted(FENCED, "test") as fenced:
            worker.add(worker.reader.run())
            await _applied(site, 6)
        worker.check()
    assert fenced == [1]


@pytest.mark.parametrize(("what", "waits"), [("a bad moment", False), ("a long sleep", True), ("a late write", True)])
async def test_who_may_have_been_replaced_waits_before_it_takes_its_shards_back(
    site: Site, what: str, waits: bool
) -> None:
    """The group tells a member that was given up within a heartbeat or two: until then it would rob its successor."""
    await _write(site, 0, 6)
    async with _counting(site) as worker:
        worker.reader._heartbeat = 0.1
        failed: list[float] = []

        async def fail(_: Polled) -> None:
            if failed:
                return
            if what == "a late write":  # of a task of its own, beside this one
                worker.reader.doubt(Fenced([0]))
            else:
                await asyncio.sleep(1.1 if what == "a long sleep" else 0)
            failed.append(time.monotonic())
            if what != "a late write":
                raise Transient(what)

        worker.in_handle = fail
        with counted(FENCED, "test") as fenced:
            worker.add(worker.reader.run())
            await _applied(site, 6)
        worker.check()
    assert fenced == [1 if what == "a late write" else 0]
    assert (worker.took[1] - failed[0] >= 0.3) == waits


async def test_a_lost_answer_to_commit_doubles_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction is in the database and the answer never came: only reading again tells."""
    await _write(site, 0, 9)
    commit = Transaction._Transaction__commit  # type: ignore[attr-defined]
    lost: list[int] = []

    async def losing(self: Transaction) -> None:
        await commit(self)
        if armed and not lost:
            lost.append(1)
            self._connection.terminate()  # type: ignore[attr-defined]
            raise ConnectionResetError("the answer was lost")

    armed: list[int] = []
    monkeypatch.setattr(Transaction, "_Transaction__commit", losing)
    async with _counting(site) as worker:

        async def arm(_: Connection) -> None:
            armed.append(1)

        worker.in_write = arm
        with counted(TRANSIENT, "test") as transient:
            worker.add(worker.reader.run())
            await _applied(site, 9)
        worker.check()
    assert lost
    assert transient == [1]


async def test_a_server_that_ends_our_session_before_commit_loses_nothing(site: Site) -> None:
    await _write(site, 0, 9)
    async with _counting(site) as worker:
        cut: list[int] = []

        async def cut_off(connection: Connection) -> None:
            if not cut:
                cut.append(await connection.fetchval("SELECT pg_backend_pid()"))
                await site.pool.execute("SELECT pg_terminate_backend($1)", cut[0])
                await asyncio.sleep(0.05)

        worker.in_write = cut_off
        with counted(TRANSIENT, "test") as transient:
            worker.add(worker.reader.run())
            await _applied(site, 9)
        worker.check()
    assert cut
    assert transient[0] >= 1
    assert worker.dropped >= 2  # memory was thrown away


async def test_a_frozen_owner_does_not_block_the_next_one(site: Site) -> None:
    """It sleeps with the row locked; its session ends by itself, and its transaction with it."""
    frozen = await connect_pool(site.pool._connect_args[0])  # type: ignore[attr-defined]
    async with transaction(site.pool) as connection:
        await shard_owner.acquire(connection, "test", [0], "first", ["t"], "log-1")
    try:
        asleep = await frozen.acquire()
        pid = await asleep.fetchval("SELECT pg_backend_pid()")
        await asleep.transaction().start()
        await shard_owner.lock(asleep, "test", {0: 1})
        async with transaction(site.pool) as connection:
            taken = await shard_owner.acquire(connection, "test", [0], "second", ["t"], "log-1")
        assert taken[0][0].epoch == 2
        assert await site.pool.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid) == 0
    finally:
        frozen.terminate()


async def test_a_record_that_changed_under_its_offset_stops_the_reader(any_site: Site) -> None:
    site = any_site
    await _write(site, 0, 3)
    async with _counting(site) as worker:
        worker.add(worker.reader.run())
        await _applied(site, 3)
    await site.pool.execute("UPDATE spine.shard_position SET digest = '\\x0011223344556677' WHERE shard = 1")
    async with _counting(site) as again:
        again.add(again.reader.run())
        with pytest.raises(LogReplaced, match=r"\[1\] no longer holds at offset 2"):
            await again.died()


async def test_a_new_log_is_read_from_its_beginning(site: Site) -> None:
    """The embedded broker keeps nothing over a restart; who says so is the installation's log id, not a guess."""
    await _write(site, 0, 3)
    async with _counting(site) as worker:
        worker.add(worker.reader.run())
        await _applied(site, 3)
    await site.pool.execute("TRUNCATE seen")
    await site.pool.execute("UPDATE control.installation SET log_id = 'log-2'")
    async with _counting(site) as again:
        again.add(again.reader.run())
        await _applied(site, 3)
    assert {r["log_id"] for r in await site.rows("SELECT log_id FROM spine.shard_position WHERE service = 'test'")} == {
        "log-2"
    }


def test_numbers_of_a_ledger_outlive_a_log_and_offsets_do_not() -> None:
    before = Position("s", "log-1", 10, 9, b"d", 2, 77)
    assert before.restarted("log-2", numbers_survive=True) == Position("s", "log-2", 0, -1, b"", 2, 77)
    assert before.restarted("log-2", numbers_survive=False) == Position("s", "log-2", 0, -1, b"", 0, -1)


class _Log:
    """A log that begins at `start` and holds `kept`."""

    def __init__(self, start: int, kept: bytes | None) -> None:
        self._start, self._kept = start, kept

    async def starts(self, topic: str, partitions: Any) -> dict[int, int]:
        return dict.fromkeys(partitions, self._start)

    async def at(self, topic: str, offsets: Mapping[int, int]) -> dict[int, Any]:
        return {p: None if self._kept is None else _Kept(self._kept) for p in offsets}


class _Kept:
    key = b"k"

    def __init__(self, value: bytes) -> None:
        self.value = value


@pytest.mark.parametrize(
    ("start", "kept", "next_offset", "refused"),
    [
        (0, b"v", 10, None),
        (0, b"w", 10, "re-created or truncated"),
        (0, None, 10, "re-created or truncated"),
        (10, None, 10, None),
        (9, None, 10, "re-created or truncated"),
        (11, None, 10, "emptied by retention"),
    ],
)
async def test_what_proves_a_log(start: int, kept: bytes | None, next_offset: int, refused: str | None) -> None:
    """The record last read; or, once retention took it, that nothing unread went with it."""
    log: Any = _Log(start, kept)
    position = Position("t", "l", next_offset, 9, record_digest(b"k", b"v"))
    if refused is None:
        assert await prove(log, "t", {0: position}) == {0: start}
    else:
        with pytest.raises(LogReplaced, match=refused):
            await prove(log, "t", {0: position})


async def test_numbers_that_moved_without_us_are_no_ground_to_write_on(site: Site) -> None:
    await _write(site, 0, 3)
    async with _counting(site) as worker:
        await worker.reader._take_over()
        await site.pool.execute("UPDATE spine.shard_owner SET next_seq = 50 WHERE service = 'test'")
        polled = await worker.consumer.fetch(range(SHARDS), timeout_ms=2000, max_records=10)
        with pytest.raises(Transient, match="stands at 50"):
            await worker.handle(polled)
    assert await _seen(site) == []


async def test_a_bug_is_tried_again_and_ends_the_process_if_it_stays(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restarting would not help for ever; what helps is that it is seen."""
    monkeypatch.setattr(fenced_reader, "backoff_seconds", lambda *_: 0.0)
    await _write(site, 0, 1)
    async with _counting(site) as worker:

        async def broken(_: Polled) -> None:
            raise ZeroDivisionError("bug")

        worker.in_handle = broken
        with counted(BUGS, "test") as bugs:
            worker.add(worker.reader.run())
            with pytest.raises(ZeroDivisionError):
                await worker.died()
    assert bugs[0] > 3
    assert worker.suspected
    assert await _seen(site) == []


async def test_commits_of_several_tasks_queue_and_stop_with_the_shards(site: Site) -> None:
    async with _counting(site) as worker:
        await worker.reader._take_over()

        async def write(connection: Connection, owners: Mapping[int, Owner]) -> None:
            number = owners[0].next_seq
            owners[0].next_seq += 1
            await connection.execute("INSERT INTO seen VALUES (0, $1)", number)

        await asyncio.gather(*(worker.reader.commit([0], {}, write) for _ in range(20)))
        assert await _seen(site) == [(0, n) for n in range(1, 21)]
        waiting = [asyncio.create_task(worker.reader.commit([0], {}, write)) for _ in range(3)]
        worker.reader._let_go()
        for found in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(found, Reassigned)
    assert len(await _seen(site)) == 20
