"""What the notifier's API asks of Postgres."""

from __future__ import annotations

from typing import Any

import msgspec

from services.notifier.messages import month_in
from shared.contracts.identifiers import shard_of
from shared.data.db import Pool
from shared.process.clock import iso, iso_or_none

_MESSAGES = """
SELECT m.*, r.context_id, r.log_id AS context_log_id, r.context_offset, r.zone AS run_zone
FROM notifier.message m LEFT JOIN notifier.run r ON r.run_id = m.run_id
WHERE ($1 = '' OR (m.shard = $2 AND m.user_id = $1)) AND ($3 = '' OR m.campaign = $3) AND ($4 = '' OR m.state = $4)
    AND m.message_id > $5
ORDER BY m.message_id LIMIT $6
"""
_MESSAGE = """
SELECT m.*, r.context_id, r.log_id AS context_log_id, r.context_offset
FROM notifier.message m LEFT JOIN notifier.run r ON r.run_id = m.run_id WHERE m.month = $1 AND m.message_id = $2
"""
_PENDING = """
SELECT message_id, occurrence, state, release_at FROM notifier.message
WHERE shard = $1 AND user_id = $2 AND campaign = $3 AND state IN ('held', 'waiting') ORDER BY release_at, message_id
"""
# a forecast stands once for each of its cities, and only where it still holds or will
_CONTEXT = """
SELECT * FROM (
    SELECT context_id, kind, chain_id, log_id, context_offset, verdict, cities, body::text, received_at
    FROM notifier.context_event WHERE $2 = '' OR kind = $2
    UNION ALL
    SELECT context_id, 'forecast', '', log_id, context_offset, 'matched', count(*)::int, min(body::text), received_at
    FROM notifier.forecast WHERE $2 IN ('', 'forecast') GROUP BY context_id, log_id, context_offset, received_at
) AS told WHERE $3 = '' OR context_id = $3 ORDER BY received_at DESC, context_offset DESC LIMIT $1
"""
_RUNS = """
SELECT r.run_id, r.occurrence, r.zone, r.context_id, r.campaign_version, r.occurred_at, r.valid_until,
    cardinality(r.city_ids) AS cities, bool_and(s.done) AS done, sum(s.planned)::bigint AS members
FROM notifier.run r JOIN notifier.run_shard s USING (run_id) WHERE r.campaign = $1
GROUP BY r.run_id ORDER BY r.created_at DESC, r.run_id LIMIT $2
"""
_RESULTS = """
SELECT variant, state, reason, count(*) AS messages, count(opened_at) AS opened FROM notifier.message
WHERE campaign = $1 GROUP BY variant, state, reason ORDER BY variant, state, reason
"""


async def messages(
    pool: Pool, shards: int, user: str, campaign: str, state: str, after: str, limit: int
) -> list[dict[str, Any]]:
    """Messages, each with the ledger row (shard, gen, seq) it goes back to, and the raw record or the run."""
    shard = shard_of(user, shards) if user else 0
    return [_message(dict(row)) for row in await pool.fetch(_MESSAGES, user, shard, campaign, state, after, limit)]


async def message(pool: Pool, message_id: str) -> dict[str, Any] | None:
    row = await pool.fetchrow(_MESSAGE, month_in(message_id), message_id)
    return None if row is None else _message(dict(row))


def _message(row: dict[str, Any]) -> dict[str, Any]:
    cause: dict[str, Any] = {"ledger": {"shard": row["shard"], "gen": row["cause_gen"], "seq": row["cause_seq"]}}
    if row["cause_src"] >= 0:
        cause["raw"] = {"partition": row["shard"], "offset": row["cause_src"]}
    if row["run_id"] and not row["context_id"]:
        cause["run"] = {"run_id": row["run_id"], "zone": row["run_zone"]}
    elif row["run_id"]:
        cause["run"] = {
            "run_id": row["run_id"],
            "context_id": row["context_id"],
            "log_id": row["context_log_id"],
            "context_offset": row["context_offset"],
        }
    return {
        "message_id": row["message_id"],
        "user_id": row["user_id"],
        "campaign": row["campaign"],
        "campaign_version": row["campaign_version"],
        "variant": row["variant"],
        "occurrence": row["occurrence"],
        "state": row["state"],
        "reason": row["reason"],
        "provider": row["provider"] or None,
        "provider_ref": row["provider_ref"] or None,
        "title": row["title"] or None,
        "body": row["body"] or None,
        "collapse_id": row["collapse_id"] or None,
        "chain": row["chain"] or None,
        "action": row["action"],
        "sound": row["sound"],
        "expires_at": iso_or_none(row["expires_at"] or None),
        "attempts": row["attempts"],
        "category": row["category"] or None,
        "gates": msgspec.json.decode(row["explain"]) if row["explain"] else [],
        "planned_at": iso(row["planned_at"]),
        "release_at": iso_or_none(row["release_at"] or None),
        "attempted_at": iso_or_none(row["attempted_at"]),
        "finished_at": iso_or_none(row["finished_at"]),
        "opened_at": iso_or_none(row["opened_at"]),
        "cause": cause,
    }


async def pending(pool: Pool, shard: int, user: str, campaign: str) -> list[dict[str, Any]]:
    """What waits for the end of a delay or is held until quiet hours are over, and until when."""
    rows = await pool.fetch(_PENDING, shard, user, campaign)
    return [{**dict(row), "release_at": iso(row["release_at"])} for row in rows]


async def context_events(pool: Pool, kind: str, limit: int, context_id: str = "") -> list[dict[str, Any]]:
    return [
        {
            "id": row["context_id"],
            "kind": row["kind"],
            "chain_id": row["chain_id"] or None,
            "verdict": row["verdict"],
            "cities": row["cities"],
            "facts": msgspec.json.decode(row["body"]),
            "received_at": iso(row["received_at"]),
            "context": {"log_id": row["log_id"], "offset": row["context_offset"]},
        }
        for row in await pool.fetch(_CONTEXT, limit, kind, context_id)
    ]


async def results(pool: Pool, campaign: str) -> list[dict[str, Any]]:
    return [dict(row) for row in await pool.fetch(_RESULTS, campaign)]


async def runs(pool: Pool, campaign: str, limit: int) -> list[dict[str, Any]]:
    """Runs of a campaign, newest first: how many members of its audience were looked at, and whether that is all."""
    return [
        {
            "run_id": row["run_id"],
            "occurrence": row["occurrence"],
            "zone": row["zone"] or None,
            "context_id": row["context_id"] or None,
            "campaign_version": row["campaign_version"],
            "occurred_at": iso(row["occurred_at"]),
            "valid_until": iso_or_none(row["valid_until"]),
            "cities": row["cities"],
            "members": row["members"],
            "done": row["done"],
        }
        for row in await pool.fetch(_RUNS, campaign, limit)
    ]
