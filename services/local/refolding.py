"""How the segmenter's users are made anew from its input, in the archive and the topic, as if nothing had been lost.

One transaction per shard, up to the record that the segmenter had read; from there it goes on by itself. Nothing is
published: what had been told has been told. Where a shard's history is left, it stays, and so do its numbers; where it
is gone, it is written anew under the numbers it had, and numbering goes on behind them in a new generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import asyncpg
import msgspec

from services.archive import segments
from services.archive.archiver import RULES, TICKS
from services.archive.folder import Folder
from services.local.archived import Archived, others
from services.local.children import Say
from services.local.database import connected
from services.local.differences import Differences, compare
from services.local.program import LocalError
from services.local.progress import Progress
from services.local.restoring import feed_number, json_number, number_on, running
from services.segmenter.pipeline import Segmenter
from services.segmenter.publish import Publisher
from services.segmenter.refold import Merged, Refold, Unreached
from shared.contracts.topics import Names, Topic
from shared.data.control import InstallationRow, RulesBook, installation
from shared.data.db import Connection, Pool, connect_pool
from shared.data.ledger import prepare_partitions
from shared.data.shard_owner import MERGES_READ, Owner, Position, put_position
from shared.kafka.log_reader import LogReader
from shared.kafka.relay import Relay
from shared.kafka.sender import Sender
from shared.kafka.side_input import SideInput
from shared.process.clock import Clock

_NOT_MERGED = (
    "users that were merged cannot be made anew: what shards told each other is in no archive. Go back to a backup of"
    " Postgres instead."
)
_MERGED = "SELECT EXISTS (SELECT FROM spine.shard_position WHERE service = $1)"
_ENSURE = "INSERT INTO spine.shard_owner (service, shard) VALUES ('segmenter', $1) ON CONFLICT DO NOTHING"
_TAKE = """
UPDATE spine.shard_owner SET epoch = epoch + 1, owner = 'rebuild' WHERE service = 'segmenter' AND shard = $1
RETURNING shard, epoch, gen, next_seq, relayed, last_change_seq, last_dead_seq
"""
_POSITION = """
SELECT source, log_id, next_offset, last_offset, digest, last_gen, last_src FROM spine.shard_position
WHERE service = 'segmenter' AND shard = $1 AND source = $2
"""
_OTHER_LOG = """
SELECT log_id FROM segmenter.tick_log WHERE shard = $1 AND log_id <> $2
UNION ALL SELECT log_id FROM spine.shard_position WHERE service = 'segmenter' AND shard = $1 AND log_id <> $2 LIMIT 1
"""
_HISTORY = "SELECT EXISTS (SELECT 1 FROM segmenter.ledger WHERE shard = $1)"
_POISON = """
SELECT src, payload->>'reason' AS reason FROM segmenter.ledger
WHERE shard = $1 AND kind = 'dead_letter' AND log_id = $2 AND payload->>'reason' LIKE 'bug:%'
"""
_PUT_TICKS = """
INSERT INTO segmenter.tick_log (shard, tick_id, seq, at_src, log_id, as_of, rules_version)
OVERRIDING SYSTEM VALUE SELECT $1, n.tick_id, n.seq, n.at_src, $2, n.as_of, n.rules_version
FROM unnest($3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::int[])
    AS n(tick_id, seq, at_src, as_of, rules_version)
ON CONFLICT (shard, tick_id) DO NOTHING
"""
_NUMBER_TICKS_ON = """
SELECT setval('segmenter.tick_log_tick_id_seq', greatest($1, (SELECT last_value FROM segmenter.tick_log_tick_id_seq)))
"""
_PUT_RULES = """
INSERT INTO control.rules (version, pack, body, note, created_at) VALUES ($1, $2, $3, $4, to_timestamp($5))
ON CONFLICT (version) DO NOTHING
"""
_ENTERED = """
UPDATE segmenter.cohort_member c SET entered_seq = coalesce((
    SELECT max(l.seq) FROM segmenter.ledger l
    WHERE l.shard = c.shard AND l.user_id = c.user_id AND l.kind = 'cohort_entered'
      AND l.payload->>'relation' = c.relation AND (l.payload->>'city_id')::int = c.city_id), 0)
WHERE c.shard = $1
"""
_GO_ON = """
UPDATE spine.shard_owner SET next_seq = greatest(next_seq, $2), relayed = greatest(next_seq, $2) - 1,
    last_change_seq = greatest(last_change_seq, $3), last_dead_seq = greatest(last_dead_seq, $4)
WHERE service = 'segmenter' AND shard = $1
"""


class _Tick(msgspec.Struct):
    """A line of the archive's ticks; the record's offset is its id."""

    seq: int
    at_src: int
    as_of: int
    rules_version: int


class _RulesRow(msgspec.Struct):
    """A line of the archive's rules; the record's offset is the version."""

    pack: str
    body: str
    note: str
    created_at: int


class Refolding:
    """One installation's shards, one after the other."""

    def __init__(
        self, connection: asyncpg.Connection[asyncpg.Record], pool: Pool, kafka: str, reader: LogReader, names: Names,
        made: InstallationRow, folder: Folder | None, say: Say,
    ) -> None:  # fmt: skip
        self._connection, self._pool, self._reader, self._names = connection, pool, reader, names
        self._made, self._folder, self._say = made, folder, say
        self._topic = names.topic(Topic.EVENTS)
        self._source = Archived(folder, reader, self._topic)
        # its own code folds; the relay is never run, so that nothing is published
        publisher = Publisher(names)
        relay = Relay("segmenter", Sender(kafka), publisher.row, _note_nothing)
        self._segmenter = Segmenter(
            pool, RulesBook(), relay, publisher, Clock(), merges=SideInput(kafka, names.topic(Topic.MERGE), reader),
            all_shards=made.shards, most_cached=0,
        )  # fmt: skip

    async def shard(self, shard: int) -> str:
        """Makes a shard anew, in the transaction that is open; what was done, in words."""
        connection, log_id = self._connection, self._made.log_id
        await connection.execute(_ENSURE, shard)
        owner = Owner(**dict(await self._row(_TAKE, shard)))
        if await connection.fetchval(_MERGED, MERGES_READ):
            raise LocalError(f"some of the users were merged; {_NOT_MERGED}")
        await self._require_one_log(shard)
        read = await connection.fetchrow(_POSITION, shard, self._topic)
        kept = Position(**dict(read)) if read is not None and read["next_offset"] else None
        road = await self._source.road(shard, kept.next_offset if kept is not None else None)
        await self._put_ticks(shard)
        lost = not await connection.fetchval(_HISTORY, shard)
        poison = {row["src"]: row["reason"] for row in await connection.fetch(_POISON, shard, log_id)}
        refold = Refold(
            connection, self._pool, self._segmenter, shard, self._topic, log_id, poison=poison, history=lost,
            recorded_at=Clock().real_ms(),
        )  # fmt: skip
        await refold.begin(owner)
        progress = Progress(f"shard {shard}", road, self._say)
        async for page in self._source.pages(shard, road):
            try:
                await refold.fold(page, segments.digest(page[-1]))
            except Merged as merged:
                raise LocalError(f"shard {shard}: decision {merged} makes one of two users; {_NOT_MERGED}") from merged
            progress.read(page)
        users = await self._end(refold, kept, shard)
        if kept is None:
            await put_position(connection, "segmenter", shard, refold.position)
        for src, error in refold.set_aside:
            self._say(f"shard {shard}: decision {src} makes the code fail and is set aside ({error!r})")
        done = f"{users:,} users from {progress.records:,} records, {len(road.files)} files of them"
        if not lost:
            await connection.execute(_ENTERED, shard)
            return f"{done}; history stays"
        await self._number_on(shard, refold.next_seq)
        untold = owner.next_seq - 1 - owner.relayed
        gone = f"; {untold} rows nobody was told are lost: run `perennial rebuild` next" if untold else ""
        return f"{done}; history is written anew{gone}"

    async def _end(self, refold: Refold, kept: Position | None, shard: int) -> int:
        at = refold.position
        where = f"decision {at.last_src} in record {at.last_offset}"
        proof = (at.last_offset, at.digest, at.last_src)
        if kept is not None and proof != (kept.last_offset, kept.digest, kept.last_src):
            raise LocalError(
                f"shard {shard}: the segmenter had applied decision {kept.last_src} in record {kept.last_offset};"
                f" archive and topic lead to {where}: decisions are missing, or it is another log's archive"
            )
        try:
            return await refold.end()
        except Unreached as error:
            raise LocalError(
                f"shard {shard}: time has passed behind decision {error}; archive and topic lead to {where} only"
            ) from error

    async def _require_one_log(self, shard: int) -> None:
        other = await self._connection.fetchval(_OTHER_LOG, shard, self._made.log_id)
        if other is not None:
            raise LocalError(
                f"shard {shard}: its users came of the log {other!r} as well, and the log is {self._made.log_id!r} by"
                " now: users that came of several logs cannot be made anew"
            )

    async def _put_ticks(self, shard: int) -> None:
        """Those of the archive beside those in the table: together they are all, under the numbers they had."""
        for file in self._folder.chain(TICKS, shard) if self._folder is not None else ():
            told = [(r.offset, msgspec.json.decode(r.value or b"", type=_Tick)) for r in file.records()]
            await self._connection.execute(
                _PUT_TICKS, shard, self._made.log_id, [i for i, _ in told], [t.seq for _, t in told],
                [t.at_src for _, t in told], [t.as_of for _, t in told], [t.rules_version for _, t in told],
            )  # fmt: skip
            await self._connection.execute(_NUMBER_TICKS_ON, file.last)

    async def _number_on(self, shard: int, next_seq: int) -> None:
        """Number on behind what readers have seen, and behind the history as it was written anew."""
        feed = self._names.topic(Topic.FEED)
        await number_on(self._connection, self._reader, "segmenter", feed, feed_number, [shard], always=True)
        told = []
        for topic in (Topic.CHANGES, Topic.DEAD_LETTERS):
            record = (await self._reader.last(self._names.topic(topic), [shard]))[shard]
            told.append(json_number(record.value or b"")[1] if record is not None else 0)
        await self._connection.execute(_GO_ON, shard, next_seq, *told)

    async def _row(self, query: str, *values: object) -> asyncpg.Record:
        row = await self._connection.fetchrow(query, *values)
        assert row is not None
        return row


async def rebuild(
    dsn: str, kafka: str, reader: LogReader, names: Names, shards: Sequence[int], archive: Folder | None, say: Say,
    *, check: bool = False,
) -> list[Differences]:  # fmt: skip
    """Rebuilds these shards; each is done when it is said. LocalError while a segmenter runs.

    `check`: all of it is done and nothing kept; what would be otherwise than it is, for each shard.
    """
    found: list[Differences] = []
    async with connected(dsn) as connection, connected(dsn) as kept:
        if await running(connection, "segmenter"):
            raise LocalError("a segmenter is running; stop it first (gateway, ingest and notifier may run)")
        made = await installation(connection)
        await prepare_partitions(connection, Clock().real_ms())
        if archive is not None:
            if logs := others(archive, names.topic(Topic.EVENTS)):
                raise LocalError(
                    f"{archive.path} holds other logs beside {archive.log_id} ({', '.join(logs)}): users that came of"
                    " several logs cannot be made anew; move away what is not this installation's"
                )
            if not check:
                await _put_rules(connection, archive)
        pool = await connect_pool(dsn, size=1)
        try:
            refolding = Refolding(connection, pool, kafka, reader, names, made, archive, say)
            for done, shard in enumerate(shards, 1):
                transaction = connection.transaction()
                await transaction.start()
                try:
                    said = await refolding.shard(shard)
                    if check:
                        found.append(await compare(kept, connection, shard))
                        said = str(found[-1])
                except BaseException:
                    await transaction.rollback()
                    raise
                await (transaction.rollback() if check else transaction.commit())
                say(f"shard {shard}: {said} ({done} of {len(shards)})")
        finally:
            await pool.close()
    return found


async def _put_rules(connection: Connection, archive: Folder) -> None:
    """Rules versions that the database has lost, from the archive; they never change."""
    for file in archive.chain(RULES, 0):
        for record in file.records():
            row = msgspec.json.decode(record.value or b"", type=_RulesRow)
            await connection.execute(_PUT_RULES, record.offset, row.pack, row.body, row.note, row.created_at)


async def _note_nothing(_: Mapping[int, int]) -> None:
    return
