"""The segmenter's ceiling: fetch, decode, fold in a dict, and one Postgres transaction per batch with users, ledger and
positions, written while the next batch is folded; then the ledger's rows are published.

Same bytes in, partitions and durability. The fold keeps a count, a stage and cities, and a ledger row for each that is
new; there are no groups, epochs, rules, times, repeats of messages, counts by segment or records that fail.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import msgspec

from services.bench import helper
from services.bench.ceilings import reading
from shared.contracts.events import Accepted, TimeRecord
from shared.process.clock import monotonic

_GATHER = 20_000
_YIELD_EVERY = 500
_STAGES = {"Application Opened": 1, "Screen Viewed": 1, "City Searched": 2, "City Added": 3, "Default City Set": 3}
_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS bare;
CREATE TABLE IF NOT EXISTS bare.state (shard int, user_id text, body bytea, PRIMARY KEY (shard, user_id))
    WITH (fillfactor = 75);
CREATE TABLE IF NOT EXISTS bare.ledger (shard int, seq bigint, user_id text, kind text, at bigint,
    PRIMARY KEY (shard, seq));
CREATE TABLE IF NOT EXISTS bare.position (shard int PRIMARY KEY, next_offset bigint, next_seq bigint);
CREATE TEMP TABLE incoming (shard int, user_id text, body bytea) ON COMMIT DELETE ROWS;
"""
_MERGE = """
INSERT INTO bare.state SELECT * FROM incoming ORDER BY shard, user_id
ON CONFLICT (shard, user_id) DO UPDATE SET body = excluded.body
"""
_POSITIONS = """
INSERT INTO bare.position SELECT * FROM unnest($1::int[], $2::bigint[], $3::bigint[])
ON CONFLICT (shard) DO UPDATE SET next_offset = excluded.next_offset, next_seq = excluded.next_seq
"""


class _User(msgspec.Struct, array_like=True, gc=False):
    events: int = 0
    stage: int = 0
    last_at: int = 0
    cities: list[int] = []


Ledger = tuple[int, int, str, str, int]
_decode = msgspec.msgpack.Decoder(Accepted | TimeRecord).decode
_encode = msgspec.msgpack.Encoder().encode


class Bare:
    def __init__(self, consumer: Any, producer: Any, database: asyncpg.Connection[Any], target: str) -> None:
        self._consumer, self._producer, self._database, self._target = consumer, producer, database, target
        self._users: dict[tuple[int, str], _User] = {}
        self._next_seq: defaultdict[int, int] = defaultdict(int)

    async def ask(self, told: dict[str, Any]) -> dict[str, Any]:
        """Folds `events` records; how long until all is committed and published."""
        began = monotonic()
        writing: asyncio.Task[None] | None = None
        async for records in reading.polls(self._consumer, told["events"], _GATHER):
            dirty, ledger, offsets = await self._fold(records)
            # encoded now: the next fold changes these users again
            rows = [(shard, user, _encode(state)) for (shard, user), state in dirty.items()]
            if writing is not None:
                await writing
            writing = asyncio.create_task(self._write(rows, ledger, offsets, dict(self._next_seq)))
        if writing is not None:
            await writing
        return {"events": told["events"], "seconds": monotonic() - began}

    async def _fold(self, records: list[Any]) -> tuple[dict[tuple[int, str], _User], list[Ledger], dict[int, int]]:
        users, next_seq = self._users, self._next_seq
        dirty: dict[tuple[int, str], _User] = {}
        ledger: list[Ledger] = []
        offsets: dict[int, int] = {}
        for count, record in enumerate(records, 1):
            if count % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            event, shard = _decode(record.value), record.partition
            offsets[shard] = record.offset + 1
            if isinstance(event, TimeRecord):
                continue
            key = (shard, event.user_id)
            user = users.get(key)
            if user is None:
                user = users[key] = _User()
            dirty[key] = user
            user.events += 1
            user.last_at = event.occurred_at
            stage = _STAGES.get(event.name, 0)
            if stage > user.stage:
                user.stage = stage
                ledger.append((shard, next_seq[shard], event.user_id, f"stage:{stage}", event.occurred_at))
                next_seq[shard] += 1
            city = event.city_id
            if city is not None and city not in user.cities and len(user.cities) < 8:
                user.cities = [*user.cities, city]
                ledger.append((shard, next_seq[shard], event.user_id, f"city:{city}", event.occurred_at))
                next_seq[shard] += 1
        return dirty, ledger, offsets

    async def _write(
        self, rows: list[tuple[int, str, bytes]], ledger: list[Ledger], offsets: dict[int, int], seqs: dict[int, int]
    ) -> None:
        database = self._database
        async with database.transaction():
            await database.copy_records_to_table("incoming", records=rows)
            await database.execute(_MERGE)
            await database.copy_records_to_table("ledger", schema_name="bare", records=ledger)
            shards = list(offsets)
            await database.execute(_POSITIONS, shards, list(offsets.values()), [seqs.get(s, 0) for s in shards])
        values: defaultdict[int, list[tuple[bytes | None, bytes]]] = defaultdict(list)
        for row in ledger:
            values[row[0]].append((row[2].encode(), _encode(row)))
        await asyncio.gather(
            *(reading.send(self._producer, self._target, shard, several) for shard, several in values.items())
        )


async def _open(stack: AsyncExitStack, setup: dict[str, Any]) -> helper.Ask:
    consumer, producer = await reading.opened(stack, setup)
    database = await asyncpg.connect(setup["postgres"], server_settings={"jit": "off"})
    stack.push_async_callback(database.close)
    await database.execute(_SCHEMA)
    return Bare(consumer, producer, database, setup["target"]).ask


if __name__ == "__main__":
    helper.serve(_open)
