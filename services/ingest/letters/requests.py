"""A replay as it is asked for, told of and called off: a row of `control.replay` that ingest works on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from services.ingest.domain.masking import nameless
from services.ingest.letters.listing import Matching
from shared.contracts.identifiers import fresh_id
from shared.data.db import Connection
from shared.process.clock import iso

MOST_ADDRESSES = 10_000
_UPTO = """
SELECT coalesce(array_agg(coalesce(p.last_seq, 0) ORDER BY s.shard), '{}')
FROM control.installation i, generate_series(0, i.shards - 1) AS s (shard)
LEFT JOIN audience.position p ON p.shard = s.shard
"""
_ASK = "INSERT INTO control.replay (replay_id, filters, upto) VALUES ($1, $2, $3)"
_CANCEL = """
UPDATE control.replay SET cancelled = true, finished_at = coalesce(finished_at, now())
WHERE replay_id = $1 AND finished_at IS NULL
"""


class Asked(Matching, frozen=True, forbid_unknown_fields=True):
    """What is to be replayed. `event`: only events of this name. `raw`: only those at these addresses,
    `partition/offset`. `dry_run`: nothing is sent, only counted. `force`: also what today's rules refuse again."""

    event: str = ""
    raw: tuple[str, ...] = ()
    dry_run: bool = False
    force: bool = False

    def offsets(self, shard: int) -> list[int] | None:
        """The addresses in one shard, or None where any letter of it may be meant."""
        if not self.raw:
            return None
        parts = (address.partition("/") for address in self.raw)
        return [int(offset) for partition, _, offset in parts if int(partition) == shard]


decode_asked = msgspec.json.Decoder(Asked).decode


def check(asked: Asked) -> str:
    """What is wrong with it; empty where nothing is."""
    if len(asked.raw) > MOST_ADDRESSES:
        return f"at most {MOST_ADDRESSES} addresses at once"
    for address in asked.raw:
        if not re.fullmatch(r"\d{1,4}/\d{1,18}", address, re.ASCII):
            return f"{address!r} is no address; write partition/offset, as the list shows it"
    if any("\x00" in text for text in (asked.reason, asked.user, asked.source, asked.event)):
        return "a text contains a NUL character"
    return ""


async def ask(connection: Connection, asked: Asked) -> str:
    """Have it done; its id."""
    replay_id = fresh_id("rp-")
    upto: Sequence[int] = await connection.fetchval(_UPTO)
    await connection.execute(_ASK, replay_id, msgspec.json.encode(asked).decode(), upto)
    return replay_id


async def told(connection: Connection, replay_id: str = "", limit: int = 100) -> list[dict[str, Any]]:
    """Replays, newest first, or the one with this id."""
    rows = await connection.fetch(
        "SELECT * FROM control.replay WHERE $1 = '' OR replay_id = $1 ORDER BY requested_at DESC LIMIT $2",
        replay_id,
        limit,
    )
    return [_progress(row) for row in rows]


async def cancel(connection: Connection, replay_id: str) -> bool:
    """Call it off: what was sent stays sent. False where there is none under way."""
    done: str = await connection.execute(_CANCEL, replay_id)
    return done.endswith(" 1")


def _progress(row: asyncpg.Record) -> dict[str, Any]:
    finished = row["finished_at"]
    state = "cancelled" if row["cancelled"] else "done" if finished else "running" if row["worker"] else "waiting"
    counted = ("sent", "refused_still", "replayed_before", "gone")
    return {
        "replay_id": row["replay_id"],
        "state": state,
        "shards": {"done": row["shard"], "of": len(row["upto"])},
        **{name: row[name] for name in counted},
        "asked": {n: nameless(v) if isinstance(v, str) else v for n, v in json.loads(row["filters"]).items()},
        "requested_at": iso(int(row["requested_at"].timestamp() * 1000)),
        "finished_at": iso(int(finished.timestamp() * 1000)) if finished else None,
    }
