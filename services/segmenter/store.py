"""How users, tallies, cohorts and times of a shard lie in Postgres."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shared.data.db import Connection, Pool

# OFFSET 0 keeps the planner from turning the look-ups by key into a join that scans every user
_LOAD = """
SELECT w.shard, w.user_id, u.due_bucket, u.hot FROM unnest($1::int[], $2::text[]) AS w(shard, user_id)
CROSS JOIN LATERAL (
    SELECT due_bucket, hot FROM segmenter.user_state s WHERE s.shard = w.shard AND s.user_id = w.user_id OFFSET 0
) u
"""
_LOAD_COLD = """
SELECT w.shard, w.user_id, u.cold FROM unnest($1::int[], $2::text[]) AS w(shard, user_id)
CROSS JOIN LATERAL (
    SELECT cold FROM segmenter.user_state s WHERE s.shard = w.shard AND s.user_id = w.user_id OFFSET 0
) u WHERE u.cold IS NOT NULL
"""
_LOAD_SPILL = """
SELECT w.shard, w.user_id, u.hash FROM unnest($1::int[], $2::text[]) AS w(shard, user_id)
CROSS JOIN LATERAL (
    SELECT hash FROM segmenter.dedup_spill s WHERE s.shard = w.shard AND s.user_id = w.user_id AND s.day >= $3 OFFSET 0
) u
"""
_SAVE = """
INSERT INTO segmenter.user_state AS u (shard, user_id, due_bucket, rules_version, hot, cold)
SELECT * FROM unnest($1::int[], $2::text[], $3::int[], $4::int[], $5::bytea[], $6::bytea[])
ON CONFLICT (shard, user_id) DO UPDATE
SET due_bucket = excluded.due_bucket, rules_version = excluded.rules_version, hot = excluded.hot,
    cold = coalesce(excluded.cold, u.cold)
"""
_SPILL = """
INSERT INTO segmenter.dedup_spill SELECT * FROM unnest($1::int[], $2::text[], $3::int[], $4::bigint[])
ON CONFLICT DO NOTHING
"""
_TALLY = """
INSERT INTO segmenter.tally AS t (shard, kind, name, users)
SELECT * FROM unnest($1::int[], $2::text[], $3::text[], $4::bigint[])
ON CONFLICT (shard, kind, name) DO UPDATE SET users = t.users + excluded.users
"""
_DAILY = """
INSERT INTO segmenter.tally_day AS t (kind, name, day, shard, users)
SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::int[], $5::bigint[])
ON CONFLICT (kind, name, day, shard) DO UPDATE SET users = t.users + excluded.users
"""
_ENTER = """
INSERT INTO segmenter.cohort_member SELECT * FROM unnest($1::int[], $2::int[], $3::text[], $4::text[], $5::bigint[])
ON CONFLICT (shard, city_id, relation, user_id) DO UPDATE SET entered_seq = excluded.entered_seq
"""
_LEAVE = """
DELETE FROM segmenter.cohort_member c
USING unnest($1::int[], $2::int[], $3::text[], $4::text[]) AS n(shard, city_id, relation, user_id)
WHERE c.shard = n.shard AND c.city_id = n.city_id AND c.relation = n.relation AND c.user_id = n.user_id
"""
_TICK = """
INSERT INTO segmenter.tick_log (shard, seq, at_src, log_id, as_of, rules_version)
SELECT * FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::int[])
"""
_MERGE = """
INSERT INTO segmenter.merge_log
    (shard, teller, told_gen, told_seq, at_src, log_id, as_of, last_tick, rules_version, recorded_at)
SELECT * FROM unnest($1::int[], $2::int[], $3::int[], $4::bigint[], $5::bigint[], $6::text[], $7::bigint[],
    $8::bigint[], $9::int[], $10::bigint[])
"""
_SAVE_TIME = """
INSERT INTO segmenter.shard_time (shard, watermark, last_tick, rules_version, rules_cursor)
SELECT * FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::int[], $5::text[])
ON CONFLICT (shard) DO UPDATE
SET watermark = excluded.watermark, last_tick = excluded.last_tick, rules_version = excluded.rules_version,
    rules_cursor = excluded.rules_cursor
"""
_TIMES = """
SELECT shard, watermark, last_tick, rules_version, rules_cursor FROM segmenter.shard_time WHERE shard = ANY($1::int[])
"""
_VERSIONS = """
SELECT shard, min(as_of) AS since, rules_version FROM segmenter.tick_log
WHERE shard = ANY($1::int[]) GROUP BY shard, rules_version ORDER BY rules_version
"""
_DUE = """
SELECT user_id, due_bucket, hot FROM segmenter.user_state
WHERE shard = $1 AND due_bucket <= $2 AND (due_bucket, user_id) > ($3, $4)
ORDER BY due_bucket, user_id LIMIT $5
"""
_WALK = """
SELECT user_id, due_bucket, hot FROM segmenter.user_state
WHERE shard = $1 AND user_id > $2 ORDER BY user_id LIMIT $3
"""
_COUNTS = """
SELECT kind, name, sum(users)::bigint AS users FROM segmenter.tally
WHERE shard = ANY($1::int[]) AND kind IN ('stage', 'activity', 'segment') GROUP BY kind, name ORDER BY kind, name
"""

_FORGET = (
    "DELETE FROM segmenter.user_state WHERE shard = $1",
    "DELETE FROM segmenter.dedup_spill WHERE shard = $1",
    "DELETE FROM segmenter.cohort_member WHERE shard = $1",
    "DELETE FROM segmenter.tally WHERE shard = $1",
    "DELETE FROM segmenter.tally_day WHERE shard = $1",
    "DELETE FROM segmenter.shard_time WHERE shard = $1",
    "DELETE FROM segmenter.suppressed WHERE shard = $1",
)


Key = tuple[int, str]
"""(shard, user id)"""
Source = Pool | Connection


async def load(source: Source, keys: list[Key]) -> dict[Key, tuple[int | None, bytes]]:
    """Due bucket and hot row of the users that are known."""
    rows = await source.fetch(_LOAD, [k[0] for k in keys], [k[1] for k in keys])
    return {(row["shard"], row["user_id"]): (row["due_bucket"], row["hot"]) for row in rows}


async def load_cold(source: Source, keys: list[Key]) -> dict[Key, bytes]:
    rows = await source.fetch(_LOAD_COLD, [k[0] for k in keys], [k[1] for k in keys])
    return {(row["shard"], row["user_id"]): row["cold"] for row in rows}


async def load_spilled(source: Source, keys: list[Key], since_day: int) -> dict[Key, set[int]]:
    """Hashes of message ids that left these users' rings since `since_day` (days since 1970)."""
    found: dict[Key, set[int]] = {key: set() for key in keys}
    for row in await source.fetch(_LOAD_SPILL, [k[0] for k in keys], [k[1] for k in keys], since_day):
        found[row["shard"], row["user_id"]].add(row["hash"])
    return found


async def due(pool: Pool, shard: int, bucket: int, after: tuple[int, str], limit: int) -> list[tuple[str, int, bytes]]:
    """Users that may be due by the end of hour `bucket`, behind `after` = (due bucket, user id)."""
    rows = await pool.fetch(_DUE, shard, bucket, after[0], after[1], limit)
    return [(row["user_id"], row["due_bucket"], row["hot"]) for row in rows]


async def walk(source: Source, shard: int, after: str, limit: int) -> list[tuple[str, int | None, bytes]]:
    rows = await source.fetch(_WALK, shard, after, limit)
    return [(row["user_id"], row["due_bucket"], row["hot"]) for row in rows]


async def times(connection: Connection, shards: Iterable[int]) -> dict[int, dict[str, Any]]:
    rows = await connection.fetch(_TIMES, list(shards))
    return {row["shard"]: dict(row) for row in rows}


async def versions(connection: Connection, shards: Iterable[int]) -> dict[int, list[tuple[int, int]]]:
    """Per shard the (since, rules version) pairs of its ticks, versions ascending."""
    found: dict[int, list[tuple[int, int]]] = {}
    for row in await connection.fetch(_VERSIONS, list(shards)):
        found.setdefault(row["shard"], []).append((row["since"], row["rules_version"]))
    return found


async def save_users(connection: Connection, rows: list[tuple[int, str, int | None, int, bytes, bytes | None]]) -> None:
    """Upsert users, given in key order, so that two writers could never deadlock and pages are touched once."""
    await connection.execute(_SAVE, *map(list, zip(*rows, strict=True)))


async def save_spilled(connection: Connection, rows: list[tuple[int, str, int, int]]) -> None:
    await connection.execute(_SPILL, *map(list, zip(*rows, strict=True)))


async def drop_spilled(source: Source, shards: list[int], before_day: int) -> None:
    await source.execute(
        "DELETE FROM segmenter.dedup_spill WHERE shard = ANY($1::int[]) AND day < $2", shards, before_day
    )


async def add_tallies(connection: Connection, deltas: Mapping[tuple[int, str, str], int]) -> None:
    rows = sorted((*key, delta) for key, delta in deltas.items() if delta)
    if rows:
        await connection.execute(_TALLY, *map(list, zip(*rows, strict=True)))


async def add_daily(connection: Connection, deltas: Mapping[tuple[str, str, int, int], int]) -> None:
    """Add to the counts of days: (kind, name, day, shard) → by how much."""
    rows = sorted((*key, delta) for key, delta in deltas.items() if delta)
    if rows:
        await connection.execute(_DAILY, *map(list, zip(*rows, strict=True)))


async def counts(connection: Connection, shards: list[int]) -> list[tuple[str, str, int]]:
    """(stage, activity or segment; which one; users) of these shards."""
    return [(row["kind"], row["name"], row["users"]) for row in await connection.fetch(_COUNTS, shards)]


async def move_members(connection: Connection, moves: Mapping[tuple[int, int, str, str], int | None]) -> None:
    """Set who is in which cohort: (shard, city, relation, user) → ledger seq of the entry, None: left."""
    entered = [(*key, seq) for key, seq in moves.items() if seq is not None]
    left = [key for key, seq in moves.items() if seq is None]
    if left:
        await connection.execute(_LEAVE, *map(list, zip(*left, strict=True)))
    if entered:
        await connection.execute(_ENTER, *map(list, zip(*entered, strict=True)))


async def log_ticks(connection: Connection, rows: list[tuple[int, int, int, str, int, int]]) -> None:
    await connection.execute(_TICK, *map(list, zip(*rows, strict=True)))


async def log_merges(
    connection: Connection, rows: list[tuple[int, int, int, int, int, str, int, int, int, int]]
) -> None:
    await connection.execute(_MERGE, *map(list, zip(*rows, strict=True)))


async def drop_merges(pool: Pool, shards: list[int], before_ms: int) -> None:
    await pool.execute(
        "DELETE FROM segmenter.merge_log WHERE shard = ANY($1::int[]) AND recorded_at < $2", shards, before_ms
    )


async def save_times(connection: Connection, rows: list[tuple[int, int, int, int, str | None]]) -> None:
    await connection.execute(_SAVE_TIME, *map(list, zip(*rows, strict=True)))


async def forget(connection: Connection, shard: int) -> None:
    """Take away all that the fold makes of a shard; its history and its ticks stay."""
    for statement in _FORGET:
        await connection.execute(statement, shard)
