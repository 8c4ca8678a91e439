"""How a user's erasure is asked for and told of: a record in raw, ordered among their events, and a row to look at.

The row is there before the record, so that whoever holds the receipt finds it; it holds no user id until the segmenter
has read the record, and none once all is done.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from services.ingest.domain.intake import RequestKind
from shared.contracts.identifiers import MAX_ID_CHARS, fresh_id, shard_of
from shared.data.db import Connection
from shared.kafka.sender import Record
from shared.process.clock import iso

_STATES = {"requested_at": "asked", "segmenter_at": "applied", "notifier_at": "erased", "done_at": "done"}
_ASK = "INSERT INTO control.erasure (erasure_id, kind, shard) VALUES ($1, $2, $3)"
_TAKE_BACK = "DELETE FROM control.erasure WHERE erasure_id = $1 AND segmenter_at IS NULL"
_TOLD = "SELECT * FROM control.erasure WHERE erasure_id = $1"

Send = Callable[[int, Record], Awaitable[None]]
"""Appends a record to a partition of raw; raises where it is not acknowledged."""


def check(user_id: str) -> str:
    """What is wrong with the id; empty where nothing is."""
    if not user_id or len(user_id) > MAX_ID_CHARS or "\x00" in user_id or _broken(user_id):
        return f"a user id has 1 to {MAX_ID_CHARS} characters of Unicode, and none of them is NUL"
    return ""


def _broken(text: str) -> bool:
    """Whether it holds half a character, as bytes that are no UTF-8 become."""
    return any("\ud800" <= character <= "\udfff" for character in text)


async def ask(connection: Connection, send: Send, kind: RequestKind, user_id: str, shards: int, now_ms: int) -> str:
    """Put the request into raw; its id, the receipt. What `send` raises passes, and the request may have been made."""
    erasure_id, shard = fresh_id("er-"), shard_of(user_id, shards)
    await connection.execute(_ASK, erasure_id, kind, shard)
    try:
        await send(shard, record(kind, user_id, erasure_id, now_ms))
    except Exception:
        await connection.execute(_TAKE_BACK, erasure_id)
        raise
    return erasure_id


def record(kind: RequestKind, user_id: str, erasure_id: str, now_ms: int) -> Record:
    """The request as it lies in raw. Only `mode` makes it one: whoever posts events cannot set that."""
    headers = {
        "received_at": str(now_ms),
        "type": kind,
        "message_id": erasure_id,
        "source": "privacy",
        "mode": kind,
    }
    value = json.dumps({"type": kind, "userId": user_id, "messageId": erasure_id}, ensure_ascii=False)
    return Record(user_id.encode(), value.encode(), [(name, text.encode()) for name, text in headers.items()])


async def told(connection: Connection, erasure_id: str) -> dict[str, Any] | None:
    """How far a request has come, without the user's id; None where there is none of this id."""
    row = None if "\x00" in erasure_id else await connection.fetchrow(_TOLD, erasure_id)
    if row is None:
        return None
    reached = [state for name, state in _STATES.items() if row[name]]
    instants = {name: row[name] and iso(int(row[name].timestamp() * 1000)) for name in _STATES}
    return {"erasure_id": row["erasure_id"], "kind": row["kind"], "state": reached[-1], **instants}
