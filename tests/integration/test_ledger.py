"""How rows are numbered, kept and read again, and who may write them."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from shared.data import shard_owner
from shared.data.control import RulesBook, installation
from shared.data.db import Pool, connect_pool, is_moment, transaction
from shared.data.ledger import CHANGE_KINDS, DEAD_LETTER, FEED_ONLY_KINDS, LedgerRow, append, prepare_partitions, unsent
from shared.data.shard_owner import Position
from shared.process.clock import Clock
from shared.process.errors import Fatal, Fenced, Transient
from tests.support.ports import free_port
from tests.support.spine import Site

NOW = Clock().real_ms()


def _row(seq: int, kind: str = "stage_changed", shard: int = 0) -> LedgerRow:
    return LedgerRow(shard, 1, seq, seq - 1, "u", kind, {"to": "é\n", "n": seq}, "event", "m", "log", seq, NOW, NOW, 1)


async def test_history_and_feed_rows_are_read_back_in_one_order(database: Pool) -> None:
    kinds = [*sorted(CHANGE_KINDS), DEAD_LETTER, *sorted(FEED_ONLY_KINDS)]
    rows = [_row(n, kind) for n, kind in enumerate(kinds, 1)]
    async with transaction(database) as connection:
        await prepare_partitions(connection, NOW)
        await append(connection, rows)
        await append(connection, [_row(1, shard=1)])
        assert await unsent(connection, 0, 0) == rows
        assert await unsent(connection, 0, 5, limit=3) == rows[5:8]
        assert await unsent(connection, 0, len(rows)) == []
    assert await database.fetchval("SELECT count(*) FROM segmenter.outbox") == len(FEED_ONLY_KINDS)
    assert not CHANGE_KINDS & FEED_ONLY_KINDS


async def test_a_feed_row_names_the_number_before_it_and_a_public_one_its_predecessor(database: Pool) -> None:
    row = LedgerRow(0, 2, 9, 4, "u", "stage_changed", {}, "tick", "i", "log", -1, 1, 2, 3)
    feed = row.feed_row()
    assert (feed.gen, feed.seq, feed.prev_seq, feed.cause, feed.src, feed.rules) == (2, 9, 8, ("tick", "i"), -1, 3)


async def test_every_acquisition_raises_the_epoch_and_only_the_latest_may_write(database: Pool) -> None:
    async def acquire(owner: str, *shards: int) -> dict[int, int]:
        async with transaction(database) as connection:
            taken = await shard_owner.acquire(connection, "s", shards, owner, ["t"], "log")
        return {shard: one.epoch for shard, (one, _) in taken.items()}

    first = await acquire("a", 0, 1)
    second = await acquire("b", 1)
    assert (first, second) == ({0: 1, 1: 1}, {1: 2})
    async with transaction(database) as connection:
        assert set(await shard_owner.lock(connection, "s", {0: 1})) == {0}
    with pytest.raises(Fenced) as found:
        async with transaction(database) as connection:
            await shard_owner.lock(connection, "s", first)
    assert found.value.shards == [1]


async def test_numbers_and_positions_are_written_together_or_not_at_all(database: Pool) -> None:
    async with transaction(database) as connection:
        ((owner, positions),) = (await shard_owner.acquire(connection, "s", [3], "a", ["t"], "log")).values()
    assert positions["t"] == Position("t", "log")
    owner.next_seq, owner.last_change_seq = 50, 49
    moved = Position("t", "log", 12, 11, b"12345678", 2, 99)

    class Undo(Exception):
        pass

    with pytest.raises(Undo):
        async with transaction(database) as connection:
            await shard_owner.write(connection, "s", [owner], {3: [moved]})
            raise Undo
    async with transaction(database) as connection:
        ((before, kept),) = (await shard_owner.acquire(connection, "s", [3], "a", ["t"], "log")).values()
        assert (before.next_seq, kept["t"]) == (1, Position("t", "log"))
        await shard_owner.write(connection, "s", [owner], {3: [moved]})
    async with transaction(database) as connection:
        ((after, kept),) = (await shard_owner.acquire(connection, "s", [3], "a", ["t"], "another")).values()
    assert (after.next_seq, after.last_change_seq, kept["t"]) == (50, 49, moved)


async def test_what_was_relayed_never_goes_back(database: Pool) -> None:
    async with transaction(database) as connection:
        await shard_owner.acquire(connection, "s", [0], "a", [], "log")
        await shard_owner.advance_relayed(connection, "s", {0: 7})
        await shard_owner.advance_relayed(connection, "s", {0: 5})
    assert await database.fetchval("SELECT relayed FROM spine.shard_owner") == 7


async def test_owners_of_many_shards_never_wait_for_each_other_in_a_ring(database: Pool) -> None:
    """Locks are taken in shard order, whatever order they are asked in."""
    shards = list(range(16))

    async def acquire(order: list[int]) -> None:
        for _ in range(5):
            async with transaction(database) as connection:
                await shard_owner.acquire(connection, "s", order, "a", ["t"], "log")
            async with transaction(database) as connection:
                await shard_owner.advance_relayed(connection, "s", dict.fromkeys(order, 1))

    await asyncio.wait_for(asyncio.gather(*(acquire(shards[n:] + shards[:n]) for n in range(0, 16, 4))), 20)
    assert await database.fetchval("SELECT min(epoch) FROM spine.shard_owner") == 20


async def test_partitions_may_be_made_by_everyone_at_once(database: Pool) -> None:
    async def prepare() -> None:
        async with transaction(database) as connection:
            await prepare_partitions(connection, NOW)

    await asyncio.gather(*(prepare() for _ in range(4)))


async def test_a_bad_moment_of_the_database_is_transient_and_a_bug_is_not(postgres: str, database: Pool) -> None:
    with pytest.raises(Transient):
        async with transaction(database) as connection:
            await connection.execute("SET LOCAL statement_timeout = 10")
            await connection.execute("SELECT pg_sleep(5)")
    with pytest.raises(asyncpg.UndefinedTableError):
        async with transaction(database) as connection:
            await connection.execute("SELECT * FROM nowhere")
    with pytest.raises(Transient):
        await connect_pool(f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    assert not is_moment(asyncpg.UniqueViolationError("x"))
    assert is_moment(asyncpg.SerializationError("x"))


async def test_a_database_without_an_installation_says_what_to_do(database: Pool) -> None:
    async with database.acquire() as connection:
        with pytest.raises(Fatal, match="perennial migrate"):
            await installation(connection)


async def test_the_newest_rules_are_kept_for_when_the_database_is_away(site: Site, tmp_path) -> None:  # type: ignore[no-untyped-def]
    keep = tmp_path / "last-good" / "rules.json"
    with pytest.raises(Transient, match="no rules version"):
        await RulesBook(keep).refresh(None)
    first = RulesBook(keep)
    assert await first.refresh(site.pool) == 1
    again = RulesBook(keep)
    assert await again.refresh(None) == 1
    assert again.known(1) == first.known(1)
    with pytest.raises(Transient, match="version 9"):
        await again.get(site.pool, 9)
