"""What one file of the archive says: lines of JSON, compressed; and how it is read again and proven.

The first line names what the file holds, one line per record follows. Behind the compressed frame a skippable one
(RFC 8878, 3.1.2) holds its digest. So `zstd -dc FILE | jq` shows it, and a file that was changed in one bit, or cut
short, cannot pass for a whole one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cramjam
import msgspec

from shared.contracts.identifiers import record_digest
from shared.kafka.records import InRecord

FORMAT = "perennial.archive.v1"
ERASED = "perennial-erased"
"""The header of a record that was erased from the archive; it holds the record's digest."""
_SEAL = b"\x50\x2a\x4d\x18\x20\x00\x00\x00"
"""How the frame begins that decompressors skip; 32 bytes of digest follow."""
LEVEL = 6
"""Of zstd: beyond it files get smaller by a few percent, and slower to write by half."""


class Bytes(msgspec.Struct, frozen=True, gc=False):
    """Bytes that are no UTF-8."""

    base64: bytes


Told = str | Bytes | None
"""Bytes as a file tells them: the text they are, wherever they are one."""


class Head(msgspec.Struct, frozen=True):
    """`first` to `last` are the offsets the file answers for; some may hold no record (aborted transactions)."""

    format: str
    log_id: str
    topic: str
    partition: int
    first: int
    last: int


class Line(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One record; `timestamp` in milliseconds, as the broker tells it."""

    offset: int
    timestamp: int = 0
    key: Told = None
    value: Told = None
    headers: tuple[tuple[str, Told], ...] = ()


@dataclass(frozen=True, slots=True)
class Archived:
    """A record as it was read from its topic (`shared.kafka.records.InRecord`)."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


def erased(record: InRecord, value: bytes | None) -> Archived:
    """What stands for a record of which nobody may read anything any more: its offset, its digest, and `value`."""
    return Archived(record.partition, record.offset, record.timestamp, None, value, [(ERASED, digest(record))])


def digest(record: InRecord) -> bytes:
    """`record_digest` of the record as its topic has it, also where it was erased from the archive."""
    if record.key is None and record.headers and record.headers[0][0] == ERASED:
        return record.headers[0][1]
    return record_digest(record.key, record.value)


class Damaged(Exception):
    """A file does not hold what was written into it; the message says what is wrong, not which file."""


_encode = msgspec.json.Encoder().encode
_decode_head = msgspec.json.Decoder(Head).decode
_decode_line = msgspec.json.Decoder(Line).decode


def line(record: InRecord) -> bytes:
    """A record as a line, without its end."""
    headers = tuple((name, _told(value)) for name, value in record.headers)
    return _encode(Line(record.offset, record.timestamp, _told(record.key), _told(record.value), headers))


def pack(head: Head, lines: Sequence[bytes]) -> bytes:
    """The whole file."""
    frame = bytes(cramjam.zstd.compress(b"\n".join((_encode(head), *lines, b"")), level=LEVEL))
    return frame + _SEAL + _of_frame(frame)


def unpack(packed: bytes) -> tuple[Head, Iterator[Archived]]:
    """What the file says it is, and its records. `Damaged` before the first record unless all of it is whole."""
    head, lines = opened(packed)
    return head, (_record(head.partition, _decode_line(told)) for told in lines)


def opened(packed: bytes) -> tuple[Head, list[bytes]]:
    """What the file says it is, and the lines behind that."""
    frame, seal = packed[:-40], packed[-40:]
    if seal != _SEAL + _of_frame(frame):
        raise Damaged("it is not whole: its digest is not that of what it holds")
    head, *lines, _ = bytes(cramjam.zstd.decompress(frame)).split(b"\n")
    told = _decode_head(head)
    if told.format != FORMAT:
        raise Damaged(f"it is of format {told.format!r}; this version reads {FORMAT!r}")
    return told, lines


def _of_frame(frame: bytes) -> bytes:
    return hashlib.blake2b(frame, digest_size=32).digest()


def _told(value: bytes | None) -> Told:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return Bytes(value)


def _bytes(told: Told) -> bytes | None:
    if isinstance(told, Bytes):
        return told.base64
    return told.encode() if told is not None else None


def _record(partition: int, told: Line) -> Archived:
    headers = [(name, _bytes(value) or b"") for name, value in told.headers]
    return Archived(partition, told.offset, told.timestamp, _bytes(told.key), _bytes(told.value), headers)
