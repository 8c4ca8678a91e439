"""How a shard's rows are numbered, kept and read again: the segmenter's ledger, which is also its outbox."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import msgspec

from shared.contracts.changes import ChangeKind
from shared.contracts.events import FeedRow
from shared.data.db import Connection

CHANGE_KINDS: frozenset[str] = frozenset(get_args(ChangeKind))
DEAD_LETTER = "dead_letter"
MERGE_SENT = "merge_sent"
"""Something told to another shard: `payload` has its `shard` and, in base 64, what (see `shared.contracts.merges`)."""
FEED_ONLY_KINDS = frozenset(
    {
        "device_set",
        "device_removed",
        "profile_set",
        "consent_set",
        "assignment_set",
        "opened",
        "session_began",
        "moment",
        MERGE_SENT,
    }
)

OVERWRITTEN = -2
"""The `src` of rows whose user was erased: their id means nothing, and nobody is told of them again."""

_COLUMNS = (
    "shard",
    "gen",
    "seq",
    "prev_seq",
    "user_id",
    "kind",
    "payload",
    "cause_type",
    "cause_id",
    "log_id",
    "src",
    "occurred_at",
    "recorded_at",
    "rules_version",
)

_UNSENT = """
SELECT {columns} FROM segmenter.ledger WHERE shard = $1 AND seq > $2
UNION ALL
SELECT {columns} FROM segmenter.outbox WHERE shard = $1 AND seq > $2
ORDER BY seq LIMIT $3
""".format(columns=", ".join(_COLUMNS))

_encode = msgspec.json.Encoder().encode


class LedgerRow(msgspec.Struct, frozen=True, gc=False):
    """One numbered fact about a user. `prev_seq` is the row before it on the same public topic (0: none);
    `src` the offset in `app.events.raw.v1` of its cause, under `log_id` (-1: none; OVERWRITTEN: its user is erased)."""

    shard: int
    gen: int
    seq: int
    prev_seq: int
    user_id: str
    kind: str
    payload: dict[str, Any]
    cause_type: str
    cause_id: str
    log_id: str
    src: int
    occurred_at: int
    recorded_at: int
    rules_version: int

    def feed_row(self) -> FeedRow:
        """This row as `user.feed.v1` carries it: every number of the shard follows the one before. One that is sent
        again after its user was erased concerns nobody; what is told to another shard is not said here."""
        erased = self.src == OVERWRITTEN
        return FeedRow(
            self.gen,
            self.seq,
            self.seq - 1,
            "" if erased else self.user_id,
            self.kind,
            {} if erased or self.kind == MERGE_SENT else self.payload,
            self.occurred_at,
            self.recorded_at,
            (self.cause_type, self.cause_id),
            self.src,
            self.rules_version,
        )


async def append(connection: Connection, rows: list[LedgerRow]) -> None:
    """Write rows, history to the ledger and the rest to the daily outbox, under the same numbers."""
    for table, feed_only in (("ledger", False), ("outbox", True)):
        several = [row for row in rows if (row.kind in FEED_ONLY_KINDS) is feed_only]
        if several:
            # made one by one as they are sent: a batch of them at once is memory that no cache holds
            await connection.copy_records_to_table(
                table, schema_name="segmenter", columns=list(_COLUMNS), records=map(_tuple, several)
            )


def _tuple(row: LedgerRow) -> tuple[Any, ...]:
    return (
        row.shard, row.gen, row.seq, row.prev_seq, row.user_id, row.kind, _encode(row.payload).decode(),
        row.cause_type, row.cause_id, row.log_id, row.src, row.occurred_at, row.recorded_at, row.rules_version,
    )  # fmt: skip


async def unsent(connection: Connection, shard: int, relayed: int, limit: int = 5000) -> list[LedgerRow]:
    """The shard's rows behind `relayed`, in order; at most `limit`."""
    rows = await connection.fetch(_UNSENT, shard, relayed, limit)
    return [LedgerRow(**{**dict(row), "payload": msgspec.json.decode(row["payload"])}) for row in rows]


async def prepare_partitions(connection: Connection, now_ms: int) -> None:
    """Make the partitions that rows of the coming weeks fall into, and drop outbox days older than a week.

    Partitions follow real time, never product time. An advisory lock lets one process do it at a time.
    """
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('perennial.partitions'))")
    today = datetime.fromtimestamp(now_ms / 1000, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    month = today.replace(day=1)
    for _ in range(3):
        following = (month + timedelta(days=32)).replace(day=1)
        for parent in ("segmenter.ledger", "notifier.outcome"):
            await _make(connection, parent, f"{month:%y%m}", month, following)
        month = following
    for days in range(-1, 4):
        day = today + timedelta(days=days)
        await _make(connection, "segmenter.outbox", f"{day:%y%m%d}", day, day + timedelta(days=1))
    oldest = f"outbox_{today - timedelta(days=8):%y%m%d}"
    for row in await connection.fetch(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = 'segmenter.outbox'::regclass AND c.relname < $1",
        oldest,
    ):
        await connection.execute(f"DROP TABLE segmenter.{row['relname']}")


async def _make(connection: Connection, parent: str, suffix: str, start: datetime, end: datetime) -> None:
    first, behind = int(start.timestamp() * 1000), int(end.timestamp() * 1000)
    await connection.execute(
        f"CREATE TABLE IF NOT EXISTS {parent}_{suffix} PARTITION OF {parent} FOR VALUES FROM ({first}) TO ({behind})"
    )
