"""Who owns a shard, from where it is read on, and which ledger number comes next.

Every write of an owner happens in a transaction that first locks its rows here, in shard order, and finds
its own epoch. A late write of a former owner therefore fails; nothing needs to know who is alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from shared.data.db import Connection
from shared.process.errors import Fenced

MERGES_READ = "segmenter.merge"
"""Whose positions in `user.merge.v1` are: one of the topic, and one, `topic/shard`, of each shard heard of."""


@dataclass(slots=True)
class Owner:
    """One shard's owner row as this transaction leaves it. `relayed` is informational after acquire."""

    shard: int
    epoch: int
    gen: int
    next_seq: int
    relayed: int
    last_change_seq: int
    last_dead_seq: int


@dataclass(frozen=True, slots=True)
class Position:
    """Where a source is resumed (`next_offset`), and the record that proves the log is the same.

    `last_src` is the greatest number applied; where numbers are a ledger's, they count within `last_gen`.
    """

    source: str
    log_id: str
    next_offset: int = 0
    last_offset: int = -1
    digest: bytes = b""
    last_gen: int = 0
    last_src: int = -1

    def restarted(self, log_id: str, *, numbers_survive: bool) -> Position:
        """This position at the start of a new log. A ledger's numbers go on; raw offsets begin again."""
        fresh = replace(self, log_id=log_id, next_offset=0, last_offset=-1, digest=b"")
        return fresh if numbers_survive else replace(fresh, last_gen=0, last_src=-1)

    def in_log(self, log_id: str, *, numbers_survive: bool) -> Position:
        """This position in the log of that name: at its start if it was taken from another one."""
        return self if self.log_id == log_id else self.restarted(log_id, numbers_survive=numbers_survive)


_ENSURE = """
INSERT INTO spine.shard_owner (service, shard) SELECT $1, unnest($2::int[]) ON CONFLICT DO NOTHING
"""
_ENSURE_POSITION = """
INSERT INTO spine.shard_position (service, shard, source, log_id) SELECT $1, unnest($2::int[]), $3, $4
ON CONFLICT DO NOTHING
"""
_ACQUIRE = """
UPDATE spine.shard_owner SET epoch = epoch + 1, owner = $3
WHERE service = $1 AND shard = ANY($2::int[])
RETURNING shard, epoch, gen, next_seq, relayed, last_change_seq, last_dead_seq
"""
_LOCK = """
SELECT shard, epoch, gen, next_seq, relayed, last_change_seq, last_dead_seq FROM spine.shard_owner
WHERE service = $1 AND shard = ANY($2::int[]) ORDER BY shard FOR UPDATE
"""
_POSITIONS = """
SELECT shard, source, log_id, next_offset, last_offset, digest, last_gen, last_src
FROM spine.shard_position WHERE service = $1 AND shard = ANY($2::int[])
"""
_WRITE_OWNERS = """
UPDATE spine.shard_owner o SET next_seq = n.next_seq, last_change_seq = n.change_seq, last_dead_seq = n.dead_seq
FROM unnest($2::int[], $3::bigint[], $4::bigint[], $5::bigint[]) AS n(shard, next_seq, change_seq, dead_seq)
WHERE o.service = $1 AND o.shard = n.shard
"""
_WRITE_POSITIONS = """
UPDATE spine.shard_position p
SET log_id = n.log_id, next_offset = n.next_offset, last_offset = n.last_offset, digest = n.digest,
    last_gen = n.last_gen, last_src = n.last_src
FROM unnest($2::int[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bytea[], $8::int[], $9::bigint[])
    AS n(shard, source, log_id, next_offset, last_offset, digest, last_gen, last_src)
WHERE p.service = $1 AND p.shard = n.shard AND p.source = n.source
"""
_PUT_POSITIONS = """
INSERT INTO spine.shard_position
    (service, shard, source, log_id, next_offset, last_offset, digest, last_gen, last_src)
SELECT $1, n.* FROM unnest($2::int[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bytea[], $8::int[],
    $9::bigint[]) AS n
ON CONFLICT (service, shard, source) DO UPDATE
SET log_id = excluded.log_id, next_offset = excluded.next_offset, last_offset = excluded.last_offset,
    digest = excluded.digest, last_gen = excluded.last_gen, last_src = excluded.last_src
"""
_RELAYED = """
UPDATE spine.shard_owner o SET relayed = greatest(o.relayed, n.seq)
FROM unnest($2::int[], $3::bigint[]) AS n(shard, seq) WHERE o.service = $1 AND o.shard = n.shard
"""


async def acquire(
    connection: Connection, service: str, shards: Iterable[int], owner: str, sources: Iterable[str], log_id: str
) -> dict[int, tuple[Owner, dict[str, Position]]]:
    """Take the shards: every epoch rises by one, so that no transaction of a former owner can commit."""
    wanted = sorted(shards)
    await connection.execute(_ENSURE, service, wanted)
    for source in sources:
        await connection.execute(_ENSURE_POSITION, service, wanted, source, log_id)
    await connection.fetch(_LOCK, service, wanted)
    owners = {row["shard"]: Owner(**dict(row)) for row in await connection.fetch(_ACQUIRE, service, wanted, owner)}
    taken: dict[int, tuple[Owner, dict[str, Position]]] = {shard: (owners[shard], {}) for shard in wanted}
    for shard, several in (await positions(connection, service, wanted)).items():
        taken[shard][1].update(several)
    return taken


async def positions(connection: Connection, service: str, shards: Iterable[int]) -> dict[int, dict[str, Position]]:
    """By shard and source, where the service stands."""
    found: dict[int, dict[str, Position]] = {}
    for row in await connection.fetch(_POSITIONS, service, sorted(shards)):
        fields = dict(row)
        several = found.setdefault(fields.pop("shard"), {})
        several[fields["source"]] = Position(**fields)
    return found


async def lock(connection: Connection, service: str, epochs: Mapping[int, int]) -> dict[int, Owner]:
    """Lock the shards' rows in shard order. `Fenced` unless every epoch is still the one given."""
    rows = await connection.fetch(_LOCK, service, sorted(epochs))
    owners = {row["shard"]: Owner(**dict(row)) for row in rows}
    lost = [shard for shard, epoch in epochs.items() if owners[shard].epoch != epoch]
    if lost:
        raise Fenced(sorted(lost))
    return owners


async def write(
    connection: Connection, service: str, owners: Iterable[Owner], positions: Mapping[int, Iterable[Position]]
) -> None:
    """Write numbers and positions; only in the transaction that locked them."""
    rows = list(owners)
    if rows:
        await connection.execute(
            _WRITE_OWNERS,
            service,
            [o.shard for o in rows],
            [o.next_seq for o in rows],
            [o.last_change_seq for o in rows],
            [o.last_dead_seq for o in rows],
        )
    flat = [(shard, p) for shard, several in positions.items() for p in several]
    if flat:
        await connection.execute(_WRITE_POSITIONS, service, *_columns(flat))


async def put_positions(connection: Connection, service: str, positions: Mapping[int, Iterable[Position]]) -> None:
    """Write positions, whether they are there or not; in a transaction that locked the shards."""
    flat = [(shard, p) for shard, several in positions.items() for p in several]
    if flat:
        await connection.execute(_PUT_POSITIONS, service, *_columns(flat))


def _columns(flat: list[tuple[int, Position]]) -> tuple[list[object], ...]:
    return (
        [shard for shard, _ in flat],
        [p.source for _, p in flat],
        [p.log_id for _, p in flat],
        [p.next_offset for _, p in flat],
        [p.last_offset for _, p in flat],
        [p.digest for _, p in flat],
        [p.last_gen for _, p in flat],
        [p.last_src for _, p in flat],
    )


async def put_position(connection: Connection, service: str, shard: int, p: Position) -> None:
    """Have a shard's next owner go on from there; only in a transaction that raised its epoch."""
    await put_positions(connection, service, {shard: [p]})


async def advance_relayed(connection: Connection, service: str, seqs: Mapping[int, int]) -> None:
    """Note what the broker acknowledged. Needs no fence: it only ever grows, and is true whoever says it.

    Needs a transaction: rows are locked in shard order, as everywhere, or two transactions could wait for each other.
    """
    await connection.execute(_LOCK, service, sorted(seqs))
    await connection.execute(_RELAYED, service, list(seqs), list(seqs.values()))
