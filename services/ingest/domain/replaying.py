"""What a dead letter becomes when it is put into raw again: the same event, at the same time, under the same id."""

from __future__ import annotations

from typing import NamedTuple

from services.ingest.domain.intake import REQUESTS, RawRecord, Verdict

OF = "replay_of"
"""The header that names the raw record which is replayed: `partition/offset`."""
_KEPT = (b"import", *(kind.encode() for kind in REQUESTS))


class Again(NamedTuple):
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]


def again(raw: RawRecord, verdict: Verdict) -> Again:
    """The record to append. It keeps when it was received, so that an event that was young then is not too old, and
    the message id ingest knew it by, so that it counts once; imported history stays imported history, and a request
    stays one."""
    mode = raw.headers.get("mode", b"")
    headers = {
        **raw.headers,
        "received_at": str(raw.received_at).encode(),
        "message_id": verdict.message_id.encode(),
        "mode": mode if mode in _KEPT else b"replay",
        OF: address(raw.partition, raw.offset),
    }
    return Again(raw.key, raw.value or b"", list(headers.items()))


def address(partition: int, offset: int) -> bytes:
    return f"{partition}/{offset}".encode()
