"""Whether a log still holds what was read of it, and what a position is behind the records read since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shared.contracts.identifiers import record_digest
from shared.data.shard_owner import Position
from shared.kafka.log_reader import LogReader
from shared.kafka.records import InRecord
from shared.process.errors import LogReplaced


async def prove(reader: LogReader, topic: str, positions: Mapping[int, Position]) -> dict[int, int]:
    """The first offset kept of each partition. `LogReplaced` unless the log holds what was read of it."""
    starts = await reader.starts(topic, positions)
    read = {shard: position for shard, position in positions.items() if position.last_offset >= 0}
    found = await reader.at(topic, {s: p.last_offset for s, p in read.items()}) if read else {}
    for shard, position in read.items():
        record = found[shard]
        where = f"{topic}[{shard}]"
        if record is not None and record_digest(record.key, record.value) == position.digest:
            continue
        if record is None and position.last_offset < starts[shard]:
            if position.next_offset >= starts[shard]:
                continue
            raise LogReplaced(f"{where} was emptied by retention up to {starts[shard]} before it was read")
        raise LogReplaced(
            f"{where} no longer holds at offset {position.last_offset} the record that was read there: the topic"
            " was re-created or truncated. Restore it, or run `perennial restore`."
        )
    return starts


def behind(before: Position, last: InRecord | None, next_offset: int, **numbers: int) -> Position:
    """The position behind `last` (None: nothing but holes was read)."""
    if last is None:
        return replace(before, next_offset=next_offset, **numbers)  # type: ignore[arg-type]
    digest = record_digest(last.key, last.value)
    return replace(before, next_offset=next_offset, last_offset=last.offset, digest=digest, **numbers)  # type: ignore[arg-type]
