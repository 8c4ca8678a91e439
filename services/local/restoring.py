"""How numbering goes on after Postgres was restored to an older state than the topics have seen.

Readers keep the greatest `(gen, seq)` per shard: a higher generation, and numbers behind the last one in the topic,
make every row written from now on new to them.
"""

from __future__ import annotations

import json
from operator import itemgetter

from shared.contracts.events import decode_feed
from shared.contracts.topics import Names, Topic
from shared.data.db import Connection
from shared.kafka.log_reader import LogReader


async def restore(connection: Connection, reader: LogReader, names: Names, shards: int) -> list[str]:
    """Raises generation and numbers of both ledgers; epochs too, so that no owner writes under the old ones."""
    said = []
    for service, topic, number in (("segmenter", Topic.FEED, feed_number), ("notifier", Topic.OUTCOMES, json_number)):
        last = await reader.last(names.topic(topic), range(shards))
        seen = [
            number(record.value or b"") if record is not None else (0, 0) for record in map(last.get, range(shards))
        ]
        rows = await connection.fetch(
            """
            UPDATE spine.shard_owner AS o
               SET epoch = o.epoch + 1, gen = greatest(o.gen, n.gen) + 1, next_seq = greatest(o.next_seq, n.seq + 1),
                   relayed = greatest(o.relayed, n.seq)
              FROM unnest($2::int[], $3::int[], $4::bigint[]) AS n(shard, gen, seq)
             WHERE o.service = $1 AND o.shard = n.shard
            RETURNING o.shard, o.gen, o.next_seq
            """,
            service,
            list(range(shards)),
            [gen for gen, _ in seen],
            [seq for _, seq in seen],
        )
        said += [
            f"{service} {r['shard']}: generation {r['gen']}, next number {r['next_seq']}"
            for r in sorted(rows, key=itemgetter("shard"))
        ]
    return said


def feed_number(value: bytes) -> tuple[int, int]:
    """`(gen, seq)` of a feed record, be it a row or a time record."""
    record = decode_feed(value)
    return record.gen, record.seq


def json_number(value: bytes) -> tuple[int, int]:
    record = json.loads(value)
    return int(record.get("gen", 0)), int(record.get("seq", 0))
