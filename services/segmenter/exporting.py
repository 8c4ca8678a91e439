"""Everything that is kept here of one user, for the user: as rows of plain values, with nothing left out."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import msgspec

from services.segmenter import queries
from services.segmenter.domain.state import Cold, Hot, decode_cold, decode_hot
from services.segmenter.erasing import is_suppressed
from services.segmenter.publish import change
from shared.contracts.identifiers import shard_of
from shared.data.db import Connection
from shared.data.ledger import DEAD_LETTER, LedgerRow
from shared.gazetteer import Gazetteer
from shared.kafka.records import InRecord
from shared.process.clock import iso
from shared.process.errors import Transient

_ROW = "SELECT hot, cold FROM segmenter.user_state WHERE shard = $1 AND user_id = $2"
_COHORTS = """
SELECT relation, city_id, entered_seq FROM segmenter.cohort_member WHERE shard = $1 AND user_id = $2
ORDER BY relation, city_id
"""
_IDS = "SELECT day, hash FROM segmenter.dedup_spill WHERE shard = $1 AND user_id = $2 ORDER BY day, hash"
_LEDGER = "SELECT * FROM segmenter.ledger WHERE shard = $1 AND user_id = $2 ORDER BY seq"
_OUTBOX = "SELECT * FROM segmenter.outbox WHERE shard = $1 AND user_id = $2 ORDER BY seq"
_LOG_ID = "SELECT log_id FROM control.installation"

ReadRaw = Callable[[int, int], Awaitable[InRecord | None]]
"""The record at (partition, offset) of raw, while it is kept."""


async def export(
    connection: Connection, read_raw: ReadRaw, gazetteer: Gazetteer, shards: int, user_id: str
) -> dict[str, Any]:
    """The user as the segmenter keeps them, all of one moment but for raw bytes; `known`: whether there is anything.

    Refused events come with the bytes that were posted, where the log still holds them, and as text where they are.
    """
    shard = shard_of(user_id, shards)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        row = await connection.fetchrow(_ROW, shard, user_id)
        state = await queries.user(connection, gazetteer, shards, user_id)
        cohorts = [dict(one) for one in await connection.fetch(_COHORTS, shard, user_id)]
        ids = [dict(one) for one in await connection.fetch(_IDS, shard, user_id)]
        ledger = [_row(one) for one in await connection.fetch(_LEDGER, shard, user_id)]
        outbox = [_row(one) for one in await connection.fetch(_OUTBOX, shard, user_id)]
        log_id = await connection.fetchval(_LOG_ID)
        suppressed = await is_suppressed(connection, shards, user_id)
    letters = [one for one in ledger if one.kind == DEAD_LETTER]
    return {
        "user_id": user_id,
        "known": row is not None or bool(ledger),
        "suppressed": suppressed,
        "state": state,
        "row": _kept(decode_hot(row["hot"]), decode_cold(row["cold"]) if row["cold"] else None) if row else None,
        "cohorts": cohorts,
        "message_ids": ids,
        "history": [_told(one) for one in ledger if one.kind != DEAD_LETTER],
        "of_last_week": [_told(one) for one in outbox],
        "dead_letters": [await _letter(one, read_raw if one.log_id == log_id else None) for one in letters],
    }


def _kept(hot: Hot, cold: Cold | None) -> dict[str, Any]:
    """The user's row field by field; what is packed stays packed, as base64."""
    return {"hot": _plain(hot), "cold": _plain(cold) if cold is not None else None}


def _plain(row: Hot | Cold) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in row.__struct_fields__}
    plain: dict[str, Any] = msgspec.to_builtins({n: _named(v) for n, v in values.items()})
    return plain


def _named(value: Any) -> Any:
    """Structs by the names of their fields: kept rows have places only."""
    if isinstance(value, msgspec.Struct):
        return {name: _named(getattr(value, name)) for name in value.__struct_fields__}
    return [_named(one) for one in value] if isinstance(value, tuple) else value


def _row(row: asyncpg.Record) -> LedgerRow:
    return LedgerRow(**{**dict(row), "payload": msgspec.json.decode(row["payload"])})


def _told(row: LedgerRow) -> dict[str, Any]:
    raw = {"partition": row.shard, "offset": row.src, "log_id": row.log_id} if row.src >= 0 else None
    return {**change(row), "raw": raw}


async def _letter(row: LedgerRow, read_raw: ReadRaw | None) -> dict[str, Any]:
    record = None
    if read_raw is not None:
        try:
            record = await read_raw(row.shard, row.src)
        except Transient:
            record = None  # what else there is can be told without the broker
    told = {
        "reason": row.payload["reason"],
        "received_at": iso(row.occurred_at),
        "source": row.payload["source"],
        "raw": {"partition": row.shard, "offset": row.src, "log_id": row.log_id},
    }
    return told | ({} if record is None else {"posted": _text(record.value or b"")})


def _text(value: bytes) -> str:
    """The bytes as text; as `base64:…` where they are none."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return f"base64:{base64.b64encode(value).decode()}"
