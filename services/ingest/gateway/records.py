"""What a raw record looks like: its partition, its key, and the headers that travel with the bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from services.ingest.domain.intake_http import Event
from shared.contracts.identifiers import fresh_id, shard_of
from shared.kafka.sender import Record

_TYPES = {kind: ("type", kind.encode()) for kind in ("track", "identify", "screen", "page", "group", "alias", "")}
_MODES = {mode: ("mode", mode.encode()) for mode in ("live", "import")}

RECORD_OVERHEAD_BYTES = 600
"""What one record costs in this process beside its bytes: headers, tuples, its part of a wire batch."""

Place = Callable[[str], tuple[int, bytes]]


def placing(shards: int, remember: int = 32_768) -> Place:
    """`place(key) -> (partition, key bytes)`; recent keys are remembered, for murmur2 is slow in Python."""

    @lru_cache(remember)
    def place(key: str) -> tuple[int, bytes]:
        return shard_of(key, shards), key.encode()

    return place


def records_by_partition(
    events: list[Event], source: str, mode: str, received_at: int, place: Place
) -> dict[int, list[Record]]:
    """The records of one request, in the order they were posted, per partition.

    An event without a usable id is keyed by the name of its source: it is kept, and ingest rejects it.
    """
    received = ("received_at", str(received_at).encode())
    sent = ("sent_at", b"")
    from_source = ("source", source.encode())
    in_mode = _MODES[mode]
    types = _TYPES
    found: dict[int, list[Record]] = {}
    for user_id, kind, message_id, sent_at, value in events:
        if sent_at is not sent[1]:  # the events of a batch share the envelope's
            sent = ("sent_at", sent_at)
        partition, key = place(source if user_id is None else user_id)
        typed = types.get(kind) or ("type", kind.encode())
        told = ("message_id", (message_id or fresh_id("g-")).encode())
        record = Record(key, value, [received, sent, typed, told, from_source, in_mode])
        lane = found.get(partition)
        if lane is None:
            found[partition] = [record]
        else:
            lane.append(record)
    return found
