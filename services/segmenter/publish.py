"""What a ledger row becomes on the topics others read."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import msgspec

from shared.contracts.cloudevents import headers
from shared.contracts.events import FeedTime, encode
from shared.contracts.merges import MergeRecord
from shared.contracts.topics import Names, Topic
from shared.data.ledger import CHANGE_KINDS, DEAD_LETTER, MERGE_SENT, LedgerRow
from shared.kafka.relay import Published
from shared.kafka.sender import Record
from shared.process.clock import iso

_TYPES = {kind: f"perennial.segment.{kind}.v1" for kind in CHANGE_KINDS} | {DEAD_LETTER: "perennial.dead_letter.v1"}
_json = msgspec.json.Encoder().encode


class Publisher:
    """Rows to records: all go to the feed, changes and dead letters to their public topics as well, and what is told
    to another shard to that one's partition."""

    def __init__(self, names: Names) -> None:
        self._feed = names.topic(Topic.FEED)
        self._changes = names.topic(Topic.CHANGES)
        self._dead = names.topic(Topic.DEAD_LETTERS)
        self._merge = names.topic(Topic.MERGE)
        self._source = f"/perennial/{names.prefix}segmenter"

    def row(self, row: LedgerRow) -> Published:
        key, told = row.user_id.encode(), row.feed_row()
        records = [(self._feed, Record(told.user_id.encode(), encode(told)))]
        if row.kind in CHANGE_KINDS:
            records.append((self._changes, Record(key, _json(change(row)), self._headers(row))))
        elif row.kind == DEAD_LETTER:
            records.append((self._dead, Record(key, _json(dead_letter(row)), self._headers(row))))
        elif row.kind == MERGE_SENT and row.payload:
            return Published(row.seq, records, (self._merge, row.payload["shard"], Record(key, merge_record(row))))
        return Published(row.seq, records)

    def _headers(self, row: LedgerRow) -> list[tuple[str, bytes]]:
        return headers(
            event_id=f"{row.shard}-{row.gen}-{row.seq}",
            source=self._source,
            kind=_TYPES[row.kind],
            time=iso(row.recorded_at),
            subject=row.user_id,
        )

    def time(self, gen: int, seq: int, as_of: int) -> Published:
        return Published(seq, [(self._feed, Record(b"", encode(FeedTime(gen, seq, as_of))))])


def merge_record(row: LedgerRow) -> bytes:
    """The value of a record of `user.merge.v1`."""
    told = msgspec.Raw(b64decode(row.payload["told"]))
    return encode(MergeRecord(row.shard, row.gen, row.seq, told))


def change(row: LedgerRow) -> dict[str, Any]:
    """The value of a record of `segment.changes.v1`; also what the timeline shows."""
    told = {
        "user_id": row.user_id,
        "kind": row.kind,
        **row.payload,
        "occurred_at": iso(row.occurred_at),
        "recorded_at": iso(row.recorded_at),
        "cause": {"type": row.cause_type, "id": row.cause_id},
        "shard": row.shard,
        "gen": row.gen,
        "seq": row.seq,
        "prev_seq": row.prev_seq,
        "rules_version": row.rules_version,
    }
    if "city_id" in told:
        told["city_id"] = str(told["city_id"])  # ids are strings wherever others read them
    return told


def dead_letter(row: LedgerRow) -> dict[str, Any]:
    """The value of a record of `dead.letters.v1`: where the bytes lie, never the bytes."""
    return {
        "user_id": row.user_id,
        "reason": row.payload["reason"],
        "raw": {"partition": row.shard, "offset": row.src},
        "source": row.payload["source"],
        "replay": row.payload.get("replay", False),
        "recorded_at": iso(row.recorded_at),
        "shard": row.shard,
        "gen": row.gen,
        "seq": row.seq,
        "prev_seq": row.prev_seq,
    }
