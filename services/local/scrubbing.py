"""How a user is taken out of the archive, and everything else stays provable.

A record of theirs becomes one that says its offset and its digest. Of a decision the numbers stay as well, so that
those behind it follow it still: a decision that moved nothing anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from services.archive import segments
from services.archive.folder import File, Folder, replace
from services.archive.segments import Archived
from services.local.children import Say
from services.local.program import LocalError
from shared.contracts.events import Moved, TimeRecord, decode_decision, encode
from shared.contracts.topics import Names, Topic
from shared.process.clock import monotonic

_WAIT_SECONDS = 600.0
_SAY_SECONDS = 2.0

Erase = Callable[[Archived], Archived | None]
"""What stands for a record of the user; None for a record of somebody else."""


@dataclass
class Scrubbed:
    files: int = 0
    records: int = 0


async def scrub(folder: Folder, names: Names, user: str, say: Say) -> Scrubbed:
    """Rewrite every file that has a record of the user; how many there were. It may be done again at any time.

    The archiver waits meanwhile. LocalError where it does not let go of the folder.
    """
    key = user.encode()
    rules = {names.topic(Topic.RAW): _raw(key, user), names.topic(Topic.EVENTS): _decided(key, user)}
    found, deadline = Scrubbed(), monotonic() + _WAIT_SECONDS
    while True:
        with folder.sole() as alone:
            if alone:
                for topic, erase in rules.items():
                    for partition in folder.partitions(topic):
                        await _partition(folder, topic, partition, erase, found, say)
                return found
        if monotonic() > deadline:
            raise LocalError(f"somebody has been writing to {folder.path} for {_WAIT_SECONDS:.0f} s; stop the archiver")
        await asyncio.sleep(0.5)


async def _partition(folder: Folder, topic: str, partition: int, erase: Erase, found: Scrubbed, say: Say) -> None:
    said = monotonic()
    for file in folder.files(topic, partition):
        await asyncio.to_thread(_file, file, erase, found)
        if monotonic() - said > _SAY_SECONDS:
            said = monotonic()
            say(f"{topic}[{partition}]: up to {file.last:,}, {found.records:,} records erased")


def _file(file: File, erase: Erase, found: Scrubbed) -> None:
    records, erased = [], 0
    for record in file.records():
        instead = erase(record)
        erased += instead is not None
        records.append(record if instead is None else instead)
    if erased:
        head, _ = segments.unpack(file.packed())
        replace(file.path, segments.pack(head, [segments.line(record) for record in records]))
        found.files, found.records = found.files + 1, found.records + erased


def _raw(key: bytes, user: str) -> Erase:
    """By its key, and wherever the id stands in what was posted: it may have been refused, or name two users."""
    told = msgspec.json.encode(user)

    def erase(record: Archived) -> Archived | None:
        value = record.value or b""
        if record.key == key or told in value or _names(value, user):
            return segments.erased(record, None)
        return None

    return erase


def _names(value: bytes, user: str) -> bool:
    if b"\\u" not in value:  # as a string it would have been found
        return False
    try:
        event = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(event, dict) and user in (event.get("userId"), event.get("anonymousId"), event.get("previousId"))


def _decided(key: bytes, user: str) -> Erase:
    def erase(record: Archived) -> Archived | None:
        decision = decode_decision(record.value or b"")
        if isinstance(decision, TimeRecord) or (record.key != key and getattr(decision, "user_id", None) != user):
            return None
        return segments.erased(
            record, encode(Moved(decision.src, decision.prev, b"", decision.rules, record.partition))
        )

    return erase
