"""What the oracle looks at: the topics, and the database as it stood at one instant."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import asyncpg
import msgspec

from shared.process.clock import parse_instant
from tests.support import oracle_topics
from tests.support.oracle_topics import Seen

# fmt: off
HOT = [
    "form", "stage", "stage_at", "activity", "activity_at", "first_seen_at",
    "last_seen_at", "first_activity_at", "last_activity_at", "session_start_at", "session_last_at",
    "session_screens", "sessions", "screens", "opens", "activities",
    "last_day", "bitmap", "active_days", "default_city", "searched",
    "added", "segments", "consents", "flags", "orders",
    "order_days", "revenue", "due_at", "rules_version", "ring",
    "spilled_hour", "context_digest", "first_channel", "last_channel", "assignment_id",
    "shop", "older_days", "months", "turned_day", "merged_into",
    "known",
]
SHOP = [
    "last_order_at", "online_orders", "store_orders", "pickup_orders", "views", "viewed_at", "guides", "wishlist",
    "coupons", "reviews", "referrals", "feedback", "score", "scored_at",
]
PURPOSES = ["location", "search_history", "push"]
NO_SHOP: dict[str, Any] = dict.fromkeys(SHOP, 0) | {
    "last_order_at": -1, "viewed_at": [], "score": -1, "scored_at": -1,
}
# fmt: on
COLD = ["devices", "locale", "timezone", "app_version", "each_order", "forgotten_at", "claims"]
OVERWRITTEN = -2
"""The `src` of a ledger row whose user is erased."""
Rows = list[dict[str, Any]]
Log = dict[int, list[Seen]]


@dataclass
class Snapshot:
    """`raw` … `outcomes`: topics by partition; `context`: the topic's only one, read up to `context_read`; the rest:
    tables, as rows of plain values."""

    shards: int
    rules: dict[int, dict[str, Any]]
    salt: str = ""
    log_ids: set[str] = field(default_factory=set)
    raw: Log = field(default_factory=dict)
    events: Log = field(default_factory=dict)
    changes: Log = field(default_factory=dict)
    feed: Log = field(default_factory=dict)
    dead: Log = field(default_factory=dict)
    outcomes: Log = field(default_factory=dict)
    merge: Log = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)
    owners: Rows = field(default_factory=list)
    ticks: Rows = field(default_factory=list)
    merges: Rows = field(default_factory=list)
    times: Rows = field(default_factory=list)
    users: Rows = field(default_factory=list)
    tallies: Rows = field(default_factory=list)
    tallies_by_day: Rows = field(default_factory=list)
    members: Rows = field(default_factory=list)
    ledger: Rows = field(default_factory=list)
    messages: Rows = field(default_factory=list)
    outcome_rows: Rows = field(default_factory=list)
    context: list[Seen] = field(default_factory=list)
    context_read: int = -1
    context_events: Rows = field(default_factory=list)
    chains: Rows = field(default_factory=list)
    runs: Rows = field(default_factory=list)
    run_shards: Rows = field(default_factory=list)
    run_pages: Rows = field(default_factory=list)
    pushes: list[dict[str, Any]] | None = None
    near: int = 60_000
    """What is no further than so many milliseconds apart in the product's time may have been seen in either order."""


_QUERIES = {
    "owners": "SELECT service, shard, gen, next_seq, relayed, last_change_seq, last_dead_seq FROM spine.shard_owner",
    "ticks": "SELECT shard, tick_id, at_src, as_of, rules_version FROM segmenter.tick_log ORDER BY shard, tick_id",
    "merges": "SELECT * FROM segmenter.merge_log ORDER BY shard, merge_id",
    "times": "SELECT shard, watermark, last_tick, rules_version, rules_cursor FROM segmenter.shard_time",
    "users": "SELECT shard, user_id, due_bucket, rules_version, hot, cold FROM segmenter.user_state",
    "tallies": "SELECT shard, kind, name, users FROM segmenter.tally",
    "tallies_by_day": "SELECT kind, name, day, shard, users FROM segmenter.tally_day",
    "members": "SELECT shard, city_id, relation, user_id, entered_seq FROM segmenter.cohort_member",
    "ledger": "SELECT * FROM segmenter.ledger UNION ALL SELECT * FROM segmenter.outbox ORDER BY shard, seq",
    "messages": "SELECT * FROM notifier.message",
    "outcome_rows": "SELECT * FROM notifier.outcome ORDER BY shard, seq",
    "context_events": "SELECT context_id, kind, chain_id, context_offset, verdict FROM notifier.context_event",
    "chains": "SELECT alert_id, chain_id FROM notifier.alert_chain",
    "runs": "SELECT * FROM notifier.run ORDER BY run_id",
    "run_shards": "SELECT run_id, shard, done FROM notifier.run_shard",
    "run_pages": "SELECT * FROM notifier.run_page ORDER BY run_id, shard, after",
}


async def take(status: dict[str, Any]) -> Snapshot:
    """Reads the database first, in one snapshot; topics and phones may then only hold more."""
    began_ms = time.time_ns() // 1_000_000
    connection = await asyncpg.connect(status["postgres"])
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            made = await connection.fetchrow("SELECT shards, salt FROM control.installation")
            assert made is not None, "there is no installation"
            rules = await connection.fetch("SELECT version, body FROM control.rules")
            snapshot = Snapshot(
                made["shards"], {r["version"]: msgspec.json.decode(r["body"]) for r in rules}, made["salt"]
            )
            for name, query in _QUERIES.items():
                setattr(snapshot, name, [dict(row) for row in await connection.fetch(query)])
            for row in await connection.fetch(
                "SELECT shard, log_id, last_src FROM spine.shard_position WHERE service = 'segmenter'"
            ):
                snapshot.positions[row["shard"]] = row["last_src"]
                snapshot.log_ids.add(row["log_id"])
            read = await connection.fetchval("SELECT last_offset FROM spine.shard_position WHERE service = 'context'")
            snapshot.context_read = -1 if read is None else read
    finally:
        await connection.close()
    for entry in snapshot.ledger:
        entry["payload"] = msgspec.json.decode(entry["payload"])
        snapshot.log_ids.add(entry["log_id"])
    topics = {
        "raw": "app.events.raw.v1",
        "events": "app.events.v1",
        "changes": "segment.changes.v1",
        "feed": "user.feed.v1",
        "dead": "dead.letters.v1",
        "outcomes": "push.outcomes.v1",
        "merge": "user.merge.v1",
    }
    for name, topic in topics.items():
        found = await oracle_topics.read(status["kafka"], status["prefix"] + topic, snapshot.shards)
        setattr(snapshot, name, found)
    snapshot.context = (await oracle_topics.read(status["kafka"], status["prefix"] + "context.events.v1", 1))[0]
    if status.get("sandbox"):
        snapshot.pushes = _of_then(await pushes_of(status["sandbox"]), snapshot.messages, began_ms)
    return snapshot


def _of_then(pushes: list[dict[str, Any]], messages: Rows, began_ms: int) -> list[dict[str, Any]]:
    """Without those of messages that came to be, or were attempted for the first time, after the database was read: a
    delay may end at any moment."""
    attempted = {message["message_id"] for message in messages if message["attempts"]}
    return [
        push
        for push in pushes
        if push["data"].get("message_id") in attempted or parse_instant(push["received_at"]) < began_ms
    ]


async def pushes_of(sandbox: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: str | None = "0"
    async with aiohttp.ClientSession() as http:
        while cursor is not None:
            async with http.get(f"{sandbox}/pushes", params={"since": cursor, "limit": "10000"}) as answer:
                page = await answer.json()
            found += page["items"]
            cursor = page["next"]
    return found


def of_nobody(row: dict[str, Any]) -> bool:
    """Whether a row of the notifier is one whose user is erased."""
    return bool(re.fullmatch(r"erased-[0-9a-f]{24}", row["user_id"]))


def hot(row: dict[str, Any]) -> dict[str, Any]:
    """The hot part of a user's row by name; positions are the contract. Cities become [id, count, last]."""
    kept = dict(zip(HOT, msgspec.msgpack.decode(row["hot"]), strict=False))
    assert kept["form"] == 2, f"a row in a form the oracle does not know: {kept['form']}"
    for name in ("searched", "added"):
        kept[name] = _visits(kept[name])
    said = {purpose: kept["consents"] // 4**n % 4 for n, purpose in enumerate(PURPOSES)}
    kept["consents"] = {purpose: bits == 3 for purpose, bits in said.items() if bits}
    return kept


def _visits(packed: bytes) -> list[list[int]]:
    """Ten bytes each, most significant first: second of the last visit (4), city (4), how often (2)."""
    several = [packed[at : at + 10] for at in range(0, len(packed), 10)]
    return [
        [int.from_bytes(one[4:8], "big"), int.from_bytes(one[8:], "big"), int.from_bytes(one[:4], "big") * 1000]
        for one in several
    ]


def cold(row: dict[str, Any]) -> dict[str, Any]:
    blank: dict[str, Any] = {"devices": [], "locale": "", "timezone": "", "app_version": "", "claims": []}
    return blank | dict(zip(COLD, msgspec.msgpack.decode(row["cold"]), strict=False)) if row["cold"] else blank
