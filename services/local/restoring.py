"""What has to happen after Postgres was restored to an older state than the topics have seen, before services start.

Messages of since then are put back, so that none is sent again; then numbering goes on behind the last number in the
topics. Readers keep the greatest `(gen, seq)` per shard: a higher generation, and numbers behind the last one, make
every row written from now on new to them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from operator import itemgetter

from services.local.children import Say
from services.local.outcomes import recover
from shared.contracts.events import decode_feed
from shared.contracts.topics import Names, Topic
from shared.data.db import Connection
from shared.kafka.log_reader import LogReader

_RUNNING = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'perennial' || $1
"""
_ENSURE = "INSERT INTO spine.shard_owner (service, shard) SELECT $1, unnest($2::int[]) ON CONFLICT DO NOTHING"
_RAISE = """
UPDATE spine.shard_owner AS o
   SET epoch = o.epoch + 1, gen = greatest(o.gen, n.gen) + 1, next_seq = greatest(o.next_seq, n.seq + 1),
       relayed = greatest(o.relayed, n.seq)
  FROM unnest($2::int[], $3::int[], $4::bigint[]) AS n(shard, gen, seq)
 WHERE o.service = $1 AND o.shard = n.shard AND ($5 OR n.gen > o.gen OR n.seq >= o.next_seq)
RETURNING o.shard, o.gen, o.next_seq
"""


async def running(connection: Connection, service: str = "") -> bool:
    """Whether a service, or this one, is connected to the database."""
    return bool(await connection.fetchval(_RUNNING, f" {service}" if service else "%"))


async def restore(connection: Connection, reader: LogReader, names: Names, shards: int, say: Say) -> list[str]:
    """Puts messages back, then raises generation and numbers of both ledgers; what was raised.

    The numbers come last: an interrupted restore is done again from the beginning.
    """
    say(f"messages: {await recover(connection, reader, names, range(shards), say)}")
    said = []
    for service, topic, number in (("segmenter", Topic.FEED, feed_number), ("notifier", Topic.OUTCOMES, json_number)):
        said += await number_on(connection, reader, service, names.topic(topic), number, range(shards), always=True)
    return said


async def number_on(
    connection: Connection,
    reader: LogReader,
    service: str,
    topic: str,
    number: Callable[[bytes], tuple[int, int]],
    shards: Sequence[int],
    *,
    always: bool,
) -> list[str]:
    """Have a ledger go on behind the last number in its topic, `always` or where it would repeat one.

    Epochs rise too, so that no owner writes under the old numbers.
    """
    last = await reader.last(topic, shards)
    seen = {s: number(r.value or b"") if (r := last[s]) is not None else (0, 0) for s in shards}
    await connection.execute(_ENSURE, service, [shard for shard, found in seen.items() if found > (0, 0)])
    gens, seqs = [gen for gen, _ in seen.values()], [seq for _, seq in seen.values()]
    rows = await connection.fetch(_RAISE, service, list(seen), gens, seqs, always)
    return [
        f"{service} {r['shard']}: generation {r['gen']}, next number {r['next_seq']}"
        for r in sorted(rows, key=itemgetter("shard"))
    ]


def feed_number(value: bytes) -> tuple[int, int]:
    """`(gen, seq)` of a feed record, be it a row or a time record."""
    record = decode_feed(value)
    return record.gen, record.seq


def json_number(value: bytes) -> tuple[int, int]:
    record = json.loads(value)
    return int(record.get("gen", 0)), int(record.get("seq", 0))
