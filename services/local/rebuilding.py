"""How the notifier's recipients are made anew from the segmenter's users, where the feed cannot tell them any more.

One transaction per shard: it takes the shard from whoever owns it, copies its users as they were at one number of the
segmenter's ledger, and has the notifier go on in the feed behind that number. What changed up to it is not pushed for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import asyncpg

from services.local.children import Say
from services.local.database import connected
from services.local.outcomes import recover
from services.local.program import LocalError
from services.local.restoring import feed_number, json_number, number_on
from services.notifier import erasing
from services.notifier.domain.recipient import Recipient, encode_recipient
from services.segmenter.domain.state import consent, decode_cold, decode_hot
from services.segmenter.domain.visited import visits
from shared.contracts.identifiers import record_digest
from shared.contracts.topics import Names, Topic
from shared.data.control import installation
from shared.data.db import Connection
from shared.data.shard_owner import Position, put_position
from shared.kafka.log_reader import LogReader

_PAGE = 2000

_ENSURE = "INSERT INTO spine.shard_owner (service, shard) VALUES ('notifier', $1) ON CONFLICT DO NOTHING"
_TAKE = "UPDATE spine.shard_owner SET epoch = epoch + 1 WHERE service = 'notifier' AND shard = $1 RETURNING next_seq"
_NUMBER = "SELECT gen, last_seq FROM audience.position WHERE shard = $1"
_HEARD = """
SELECT last_gen, last_src FROM spine.shard_position WHERE service = 'notifier' AND shard = $1 AND source = $2
"""
_USERS = """
SELECT user_id, hot, cold FROM segmenter.user_state WHERE shard = $1 AND user_id > $2 ORDER BY user_id LIMIT $3
"""
_ERASED = """
SELECT user_id, erasure_id FROM control.erasure
WHERE shard = $1 AND kind = 'erase' AND segmenter_at IS NOT NULL AND notifier_at IS NULL
"""
_FORGET = "DELETE FROM notifier.recipient WHERE shard = $1"


async def rebuild(dsn: str, reader: LogReader, names: Names, shards: Sequence[int], say: Say) -> None:
    """Rebuilds these shards one after the other; each is done when it is said. The services may run."""
    # the users are read in a snapshot of one connection, taken once the other one holds the shard
    async with connected(dsn) as connection, connected(dsn) as snapshot:
        say(f"messages: {await recover(connection, reader, names, shards, say)}")
        outcomes = names.topic(Topic.OUTCOMES)
        for line in await number_on(connection, reader, "notifier", outcomes, json_number, shards, always=False):
            say(line)
        for done, shard in enumerate(shards, 1):
            what = await _rebuild(connection, snapshot, reader, names.topic(Topic.FEED), shard)
            say(f"shard {shard}: {what} ({done} of {len(shards)})")


async def _rebuild(
    connection: asyncpg.Connection[asyncpg.Record],
    snapshot: asyncpg.Connection[asyncpg.Record],
    reader: LogReader,
    topic: str,
    shard: int,
) -> str:
    # Before the snapshot: what is in the feed was committed, so all of it up to here is part of the snapshot.
    next_offset, last_offset, digest, published = await _end(reader, topic, shard)
    async with connection.transaction():
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = '60s'")
        await connection.execute(_ENSURE, shard)
        next_seq = await connection.fetchval(_TAKE, shard)
        async with snapshot.transaction(isolation="repeatable_read", readonly=True):
            row = await snapshot.fetchrow(_NUMBER, shard)
            gen, seq = (row["gen"], row["last_seq"]) if row is not None else (0, -1)
            if published > (gen, seq):
                raise LocalError(
                    f"shard {shard}: the feed knows number {published}, the database only {(gen, seq)}: it was restored"
                    " to an older state; stop the services and run `perennial restore` first"
                )
            # whoever was erased up to there is so here: the rows that would say it are passed over
            pending = [erasing.Erased(shard, *one) for one in await snapshot.fetch(_ERASED, shard)]
            await erasing.erase(connection, pending, {shard: next_seq - 1})
            await connection.execute(_FORGET, shard)
            count = 0
            async for page in _recipients(snapshot, shard):
                await connection.copy_records_to_table(
                    "recipient",
                    schema_name="notifier",
                    columns=["shard", "user_id", "body"],
                    records=[(shard, one.user_id, encode_recipient(one)) for one in page],
                )
                count += len(page)
        heard = await connection.fetchrow(_HEARD, shard, topic)
        log_id = (await installation(connection)).log_id
        position = Position(topic, log_id, next_offset, last_offset, digest, gen, seq)
        await put_position(connection, "notifier", shard, position)
    before = heard["last_src"] if heard is not None and heard["last_gen"] == gen else -1
    skipped = f", {seq - max(before, 0)} rows passed over" if seq > before else ""
    return f"{count} recipients as of number {seq}{skipped}"


async def _end(reader: LogReader, topic: str, shard: int) -> tuple[int, int, bytes, tuple[int, int]]:
    """Where the feed may be followed from, the offset and digest of the record before, and that record's number."""
    record = (await reader.last(topic, [shard]))[shard]
    if record is None:
        return (await reader.starts(topic, [shard]))[shard], -1, b"", (0, -1)
    return record.offset + 1, record.offset, record_digest(record.key, record.value), feed_number(record.value or b"")


async def _recipients(connection: Connection, shard: int) -> AsyncIterator[list[Recipient]]:
    after = ""
    while rows := await connection.fetch(_USERS, shard, after, _PAGE):
        page = (recipient_of(row["user_id"], row["hot"], row["cold"]) for row in rows)
        yield [recipient for recipient in page if recipient is not None]
        after = rows[-1]["user_id"]


def recipient_of(user_id: str, hot_row: bytes, cold_row: bytes | None) -> Recipient | None:
    """What the feed would have made of the user; None of one who is part of another. A token the provider called dead
    comes back, to be called so again."""
    hot = decode_hot(hot_row)
    if hot.merged_into:
        return None
    cold = decode_cold(cold_row) if cold_row is not None else None
    return Recipient(
        user_id,
        devices=cold.devices if cold is not None else (),
        push_consent=consent(hot.consents, "push"),
        locale=(cold.locale or None) if cold is not None else None,
        timezone=(cold.timezone or None) if cold is not None else None,
        stage=hot.stage,
        activity=hot.activity,
        default_city=hot.default_city or None,
        added=tuple(sorted(visit.city_id for visit in visits(hot.added))),
        assignment_id=hot.assignment_id or user_id,
        segments=hot.segments,
    )
