"""Where a message came from: message → ledger row → raw event, or message → run → alert or
schedule, and cohort."""

from __future__ import annotations

import json
from typing import Any

import asyncpg

from services.segmenter.domain.state import ABSORBED, decode_cold, decode_hot
from shared.data.db import Connection
from shared.process.clock import iso, iso_or_none

_LEDGER = """
SELECT gen, seq, kind, payload, cause_type, cause_id, log_id, src, occurred_at, recorded_at, rules_version
FROM segmenter.ledger WHERE shard = $1 AND user_id = $2 ORDER BY seq
"""
_MOMENTS = """
SELECT gen, seq, kind, payload, cause_type, cause_id, log_id, src, occurred_at, recorded_at, rules_version
FROM segmenter.outbox WHERE shard = $1 AND user_id = $2 AND seq = ANY($3::bigint[]) AND kind = 'moment'
"""
_MESSAGES = "SELECT * FROM notifier.message WHERE shard = $1 AND user_id = $2 ORDER BY planned_at, message_id"
_STATE = "SELECT hot, cold FROM segmenter.user_state WHERE shard = $1 AND user_id = $2"
_RUNS = "SELECT * FROM notifier.run WHERE run_id = ANY($1::text[])"
_MEMBER = """
SELECT city_id, relation, entered_seq FROM segmenter.cohort_member
WHERE shard = $1 AND user_id = $2 AND city_id = ANY($3::int[]) AND relation = ANY($4::text[]) ORDER BY entered_seq
"""


async def road(connection: Connection, user: str, shard: int) -> dict[str, Any]:
    """Everything recorded of the user, messages with their causes."""
    ledger = [ledger_row(row) for row in await connection.fetch(_LEDGER, shard, user)]
    messages = await connection.fetch(_MESSAGES, shard, user)
    runs = {r["run_id"]: r for r in await connection.fetch(_RUNS, [m["run_id"] for m in messages if m["run_id"]])}
    # an event a campaign waited for is no history: it can be told while the outbox keeps it
    moments = await connection.fetch(_MOMENTS, shard, user, [m["cause_seq"] for m in messages])
    by_seq = {row["seq"]: row for row in (*map(ledger_row, moments), *ledger)}
    shown = []
    for message in messages:
        cause: dict[str, Any] = {}
        if message["cause_seq"]:
            cause["ledger"] = by_seq.get(message["cause_seq"], {"seq": message["cause_seq"]})
        run = runs.get(message["run_id"])
        if run is not None:
            cause["run"] = {
                name: run[name] for name in ("run_id", "context_id", "log_id", "context_offset", "occurrence", "zone")
            }
            member = await connection.fetch(_MEMBER, shard, user, run["city_ids"], run["relations"])
            cause["cohorts"] = [
                {**dict(m), "ledger": by_seq.get(m["entered_seq"], {"seq": m["entered_seq"]})} for m in member
            ]
        shown.append(message_row(message) | {"cause": cause})
    merged_into, ids = await _ids(connection, user, shard)
    return {
        "user_id": user, "shard": shard, "merged_into": merged_into, "ids": ids, "messages": shown, "ledger": ledger,
    }  # fmt: skip


async def _ids(connection: Connection, user: str, shard: int) -> tuple[str | None, list[str]]:
    """Whom the user is part of, and which other ids are part of them."""
    row = await connection.fetchrow(_STATE, shard, user)
    if row is None:
        return None, []
    claims = decode_cold(row["cold"]).claims if row["cold"] is not None else ()
    return decode_hot(row["hot"]).merged_into or None, [one.user_id for one in claims if one.outcome == ABSORBED]


def ledger_row(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "gen": row["gen"],
        "seq": row["seq"],
        "kind": row["kind"],
        "payload": json.loads(row["payload"]),
        "cause": {"type": row["cause_type"], "id": row["cause_id"]},
        "raw_offset": row["src"] if row["src"] >= 0 else None,
        "log_id": row["log_id"],
        "occurred_at": iso(row["occurred_at"]),
        "recorded_at": iso(row["recorded_at"]),
        "rules_version": row["rules_version"],
    }


def message_row(row: asyncpg.Record) -> dict[str, Any]:
    names = (
        "message_id",
        "campaign",
        "campaign_version",
        "variant",
        "state",
        "reason",
        "provider",
        "title",
        "occurrence",
    )
    instants = ("planned_at", "attempted_at", "finished_at", "opened_at")
    shown = {name: row[name] for name in names} | {name: iso_or_none(row[name]) for name in instants}
    return shown | {"release_at": iso_or_none(row["release_at"] or None)}


def lines(road: dict[str, Any], raw_topic: str, context_topic: str) -> list[str]:
    """The road as text."""
    shard = road["shard"]
    out = [f"user {road['user_id']} (shard {shard})"]
    if road["merged_into"]:
        out.append(f"is part of user {road['merged_into']}: perennial follow {road['merged_into']}")
    out += [f"also {other}" for other in road["ids"]]
    if len(out) == 1 and not road["messages"] and not road["ledger"]:
        return [*out, "nothing is known of this user"]

    def raw(row: dict[str, Any]) -> str:
        return f"← {raw_topic} {shard}/{row['raw_offset']}" if row.get("raw_offset") is not None else ""

    def entry(row: dict[str, Any]) -> str:
        if "kind" not in row:
            return f"ledger ({shard}, {row['seq']})"
        facts = json.dumps(row["payload"], ensure_ascii=False)
        cause = f"{row['cause']['type']} {row['cause']['id']}".strip()
        return f"ledger ({shard}, {row['seq']}) {row['kind']} {facts} by {cause} {raw(row)}".rstrip()

    out.append(f"messages: {len(road['messages'])}")
    for message in road["messages"]:
        waits = f"until {message['release_at']}" if message["state"] in ("waiting", "held") else ""
        because = f" ({message['reason'] or waits})" if message["reason"] or waits else ""
        out.append(
            f"  {message['message_id']} {message['campaign']} {message['state']}{because} {message['title']}".rstrip()
        )
        cause = message["cause"]
        if "ledger" in cause:
            out.append(f"    ← {entry(cause['ledger'])}")
        if "run" in cause:
            run = cause["run"]
            told = f"{context_topic} 0/{run['context_offset']} ({run['context_id']})"
            schedule = f"schedule at {run['occurrence']} in {run['zone']}"
            out.append(f"    ← run {run['run_id']} ← {told if run['context_id'] else schedule}")
        out += [
            f"    ← {member['relation']} city {member['city_id']} ← {entry(member['ledger'])}"
            for member in cause.get("cohorts", ())
        ]
    out.append(f"ledger: {len(road['ledger'])} rows")
    out += [f"  {row['occurred_at']} {entry(row)}" for row in road["ledger"]]
    return out
