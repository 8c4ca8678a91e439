"""What a message is on its way from verdict to outcome, and how it lies in Postgres."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import msgspec

from services.notifier.domain.alert_chain import Action
from services.notifier.domain.campaign import Occurrence
from services.notifier.domain.gates import Check, Reason
from services.notifier.domain.plan import Defer, HeldOut, Send, Suppress, Verdict
from shared.contracts.rules import Campaign
from shared.data.db import Connection, Pool, transaction
from shared.data.shard_owner import Owner

Write = Callable[[Connection], Awaitable[None]]


class Message(msgspec.Struct, gc=False):
    """One row of notifier.message. `state`: intent, attempted, then sent, failed or unknown; or at once
    suppressed or held_out; or held until `release_at`, or waiting until then for the end of its campaign's delay, then
    any of these. `cause_gen`, `cause_seq`: the segmenter's ledger row it goes back to. `compared_until`: until when its
    user's doings are compared with others' (0: they are not); see `exposures`. `category` to `explain`: what the gates
    judge by (migration 0003). `city_id`: where a run that goes city by city found its user (0: it comes from none).
    From `chain` on: what it does on the phone, and what it told of a chain of alerts (0011)."""

    month: str
    message_id: str
    shard: int
    user_id: str
    campaign: str
    campaign_version: int
    variant: str
    occurrence: str
    state: str
    planned_at: int
    reason: str = ""
    device_id: str = ""
    token: str = ""
    title: str = ""
    body: str = ""
    collapse_id: str = ""
    expires_at: int = 0
    on_unknown: str = "give_up"
    attempts: int = 0
    cause_gen: int = 0
    cause_seq: int = 0
    cause_src: int = -1
    run_id: str = ""
    provider: str = ""
    provider_ref: str = ""
    safety: bool = False
    compared_until: int = 0
    category: str = ""
    counts: bool = False
    content_key: str = ""
    zone: str = ""
    release_at: int = 0
    held: str = ""
    explain: str = ""
    city_id: int = 0
    chain: str = ""
    action: Action = "show"
    sound: bool = True
    told: str = ""


class OutcomeRow(msgspec.Struct, frozen=True, gc=False):
    """One row of notifier.outcome, and one record of `push.outcomes.v1`."""

    shard: int
    gen: int
    seq: int
    user_id: str
    message_id: str
    campaign: str
    variant: str
    outcome: str
    reason: str
    provider: str
    occurred_at: int
    recorded_at: int
    chain: str = ""


_COLUMNS = [name for name in Message.__struct_fields__ if name not in ("safety", "compared_until")]
_ARRAYS = {
    "shard": "int", "campaign_version": "int", "attempts": "int", "cause_gen": "int", "planned_at": "bigint",
    "expires_at": "bigint", "cause_seq": "bigint", "cause_src": "bigint", "counts": "boolean", "release_at": "bigint",
    "city_id": "int",
    "sound": "boolean",
}  # fmt: skip
_INSERT = (  # column names are the struct's own
    f"INSERT INTO notifier.message ({', '.join(_COLUMNS)}) SELECT * FROM unnest("  # noqa: S608
    + ", ".join(f"${n}::{_ARRAYS.get(name, 'text')}[]" for n, name in enumerate(_COLUMNS, 1))
    + ") ON CONFLICT (month, message_id) DO NOTHING RETURNING message_id"
)
_ATTEMPT = """
UPDATE notifier.message m SET state = 'attempted', attempts = m.attempts + 1, attempted_at = $4, sound = n.sound,
    device_id = n.device_id, token = n.token
FROM unnest($1::text[], $2::text[], $5::boolean[], $6::text[], $7::text[])
    AS n(month, message_id, sound, device_id, token)
WHERE m.month = n.month AND m.message_id = n.message_id AND m.shard = ANY($3::int[]) AND m.state = 'intent'
RETURNING m.message_id
"""
_SETTLE = """
UPDATE notifier.message m SET state = n.state, reason = n.reason, provider = n.provider, provider_ref = n.ref,
    finished_at = CASE WHEN n.state = 'intent' THEN NULL ELSE $8::bigint END
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
    AS n(month, message_id, state, reason, provider, ref)
WHERE m.month = n.month AND m.message_id = n.message_id AND m.shard = ANY($7::int[])
    AND m.state IN ('intent', 'attempted')
RETURNING m.message_id
"""
_OPEN = f"""
SELECT {", ".join(_COLUMNS)} FROM notifier.message WHERE shard = ANY($1::int[]) AND state IN ('intent', 'attempted')
ORDER BY planned_at
"""  # noqa: S608
CONCERNED = """
m.run_id = '' OR m.action = 'retract' OR EXISTS (
    SELECT FROM notifier.run r JOIN audience.cohort_member c
        ON c.shard = m.shard AND c.relation = ANY(r.relations) AND c.city_id = ANY(CASE
            WHEN m.told <> '' THEN ARRAY(SELECT city::int FROM json_object_keys(m.told::json->'cities') AS city)
            WHEN m.city_id <> 0 THEN ARRAY[m.city_id] ELSE r.city_ids END)
    WHERE r.run_id = m.run_id AND c.user_id = m.user_id
)
"""
"""Of a message `m`: whoever is told of alerts still has one of the cities they are told for; what is told of one city,
is for whoever has that one; what is taken away, for whoever it was shown to."""
_LEFT = f"""
SELECT m.message_id FROM unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::int[], $6::text[], $7::text[])
    AS m(message_id, shard, user_id, run_id, city_id, action, told)
WHERE NOT ({CONCERNED})
"""  # noqa: S608
_SHOWS = """
SELECT m.message_id, before.device_id
FROM unnest($1::text[], $2::text[], $3::int[], $4::text[], $5::text[], $6::text[], $7::bigint[])
    AS m(message_id, month, shard, user_id, campaign, chain, planned_at)
CROSS JOIN LATERAL (
    SELECT t.device_id FROM notifier.message t
    WHERE t.shard = m.shard AND t.chain <> '' AND t.chain = m.chain AND t.user_id = m.user_id AND t.month = m.month
        AND t.campaign = m.campaign AND t.message_id <> m.message_id AND t.planned_at <= m.planned_at
        AND t.attempts > 0 AND t.state NOT IN ('suppressed', 'failed')
    ORDER BY t.planned_at DESC LIMIT 1
) before
"""
_OPENED = """
UPDATE notifier.message SET opened_at = $4 WHERE month = $1 AND message_id = $2 AND user_id = $3 AND opened_at IS NULL
RETURNING campaign, variant, provider, chain
"""
# what went unanswered may have arrived
_SUPERSEDE = f"""
UPDATE notifier.message m SET state = CASE WHEN m.reason = '' THEN 'suppressed' ELSE 'unknown' END,
    reason = CASE WHEN m.reason = '' THEN '{Reason.SUPERSEDED}' ELSE m.reason END, finished_at = $4
FROM unnest($1::text[], $2::text[]) AS n(month, message_id)
WHERE m.month = n.month AND m.message_id = n.message_id AND m.shard = ANY($3::int[]) AND m.state IN ('intent', 'held')
RETURNING {", ".join(f"m.{name}" for name in _COLUMNS)}
"""  # noqa: S608
_RESOUND = """
UPDATE notifier.message m SET sound = true FROM unnest($1::text[], $2::text[]) AS n(month, message_id)
WHERE m.month = n.month AND m.message_id = n.message_id
"""
_OUTCOME_COLUMNS = list(OutcomeRow.__struct_fields__)
_UNSENT = f"""
SELECT {", ".join(_OUTCOME_COLUMNS)} FROM notifier.outcome WHERE shard = $1 AND seq > $2 ORDER BY seq LIMIT $3
"""  # noqa: S608


def month_in(message_id: str) -> str:
    """The month whose partition holds a message; its id carries it."""
    return message_id.partition("-")[0]


def from_verdict(
    verdict: Verdict, campaign: Campaign, *, shard: int, user_id: str, occurrence: Occurrence, now_ms: int
) -> Message:
    """The row a verdict becomes; the caller adds what caused it."""
    message = _message(verdict.message_id, campaign, shard, user_id, occurrence, now_ms)
    message.explain = explained(verdict.explain)
    # whoever came as far as the holdout is compared, whatever stopped them behind it
    if campaign.measured and any(check.gate == "holdout" for check in verdict.explain):
        message.compared_until = now_ms + campaign.window_hours * 3_600_000
    match verdict:
        case Send():
            message.device_id, message.token = verdict.device.id, verdict.device.token
            message.title, message.body = verdict.title, verdict.body
            message.collapse_id, message.expires_at = verdict.collapse_id, verdict.expires_at
            message.counts, message.content_key, message.zone = verdict.counts, verdict.content_key, verdict.zone
        case Defer():
            message.state, message.release_at = "held", verdict.until
            message.held = msgspec.json.encode(occurrence).decode()
        case Suppress():
            message.state, message.reason = "suppressed", verdict.reason.value
        case HeldOut():
            message.state, message.variant = "held_out", "holdout"
            message.expires_at = occurrence.valid_until or 0
    return message


def waiting(
    message_id: str,
    campaign: Campaign,
    *,
    shard: int,
    user_id: str,
    occurrence: Occurrence,
    release_at: int,
    now_ms: int,
) -> Message:
    """The row of an occurrence whose delay is not over; the caller adds what caused it."""
    message = _message(message_id, campaign, shard, user_id, occurrence, now_ms)
    message.state, message.release_at = "waiting", release_at
    message.held = msgspec.json.encode(occurrence).decode()
    return message


def _message(
    message_id: str, campaign: Campaign, shard: int, user_id: str, occurrence: Occurrence, now_ms: int
) -> Message:
    return Message(
        month=month_in(message_id),
        message_id=message_id,
        shard=shard,
        user_id=user_id,
        campaign=campaign.id,
        campaign_version=campaign.version,
        variant="treated",
        occurrence=occurrence.id,
        state="intent",
        planned_at=now_ms,
        on_unknown=campaign.on_unknown,
        safety=campaign.safety,
        category=campaign.category,
    )


def explained(checks: Iterable[Check]) -> str:
    """Every gate with its values, as JSON; the text a push was given stands in its row already."""
    told = ({"gate": c.gate, "passed": c.passed, "values": {} if c.gate == "content" and c.passed else c.values}
            for c in checks)  # fmt: skip
    return msgspec.json.encode(list(told)).decode()


async def insert(connection: Connection, rows: list[Message]) -> set[str]:
    """Write new messages; the ids of those that were not there before."""
    columns = [[getattr(row, name) for row in rows] for name in _COLUMNS]
    return {row["message_id"] for row in await connection.fetch(_INSERT, *columns)}


async def attempt(connection: Connection, rows: list[Message], shards: list[int], now_ms: int) -> set[str]:
    """Note that these are about to be written to the wire, and for which device; the ids that were still waiting for
    it."""
    found = await connection.fetch(
        _ATTEMPT,
        [r.month for r in rows],
        [r.message_id for r in rows],
        shards,
        now_ms,
        [r.sound for r in rows],
        [r.device_id for r in rows],
        [r.token for r in rows],
    )
    return {row["message_id"] for row in found}


async def settle(connection: Connection, rows: list[Message], shards: list[int], now_ms: int) -> set[str]:
    """Write the state the rows now carry; the ids of those that were open until then."""
    found = await connection.fetch(
        _SETTLE,
        [r.month for r in rows],
        [r.message_id for r in rows],
        [r.state for r in rows],
        [r.reason for r in rows],
        [r.provider for r in rows],
        [r.provider_ref for r in rows],
        shards,
        now_ms,
    )
    return {row["message_id"] for row in found}


async def supersede(connection: Connection, follows: Mapping[str, Message], now_ms: int) -> list[Message]:
    """End those that have not gone out and are out of date; `follows`: their ids, and what takes their place. It makes
    itself heard where one of them should have."""
    months = [month_in(message_id) for message_id in follows]
    shards = sorted({message.shard for message in follows.values()})
    found = await connection.fetch(_SUPERSEDE, months, list(follows), shards, now_ms)
    ended = [Message(**dict(row)) for row in found]
    louder = [
        later
        for old in ended
        if old.sound and not (later := follows[old.message_id]).sound and later.action != "retract"
    ]
    for message in louder:
        message.sound = True
    if louder:
        await connection.execute(_RESOUND, [m.month for m in louder], [m.message_id for m in louder])
    return ended


async def opened(connection: Connection, message_id: str, user_id: str, at: int) -> dict[str, Any] | None:
    """Note the first tap on a message; campaign, variant and provider, or None if it is not this user's."""
    row = await connection.fetchrow(_OPENED, month_in(message_id), message_id, user_id, at)
    return dict(row) if row is not None else None


async def open_messages(pool: Pool, shards: Iterable[int]) -> list[Message]:
    """Messages without an outcome, oldest first."""
    return [Message(**dict(row)) for row in await pool.fetch(_OPEN, list(shards))]


async def left(pool: Pool, rows: list[Message]) -> set[str]:
    """Ids of those whose user is no longer in the audience they were planned for."""
    names = ("message_id", "shard", "user_id", "run_id", "city_id", "action", "told")
    found = await pool.fetch(_LEFT, *([getattr(row, name) for row in rows] for name in names))
    return {row["message_id"] for row in found}


async def shows(pool: Pool, rows: list[Message]) -> dict[str, str]:
    """The device that what each of them replaces or takes away went to: by message id."""
    names = ("message_id", "month", "shard", "user_id", "campaign", "chain", "planned_at")
    found = await pool.fetch(_SHOWS, *([getattr(row, name) for row in rows] for name in names))
    return {row["message_id"]: row["device_id"] for row in found}


async def append_outcomes(connection: Connection, rows: list[OutcomeRow]) -> None:
    await connection.copy_records_to_table(
        "outcome",
        schema_name="notifier",
        columns=_OUTCOME_COLUMNS,
        records=[msgspec.structs.astuple(row) for row in rows],
    )


async def unsent_outcomes(pool: Pool, shard: int, relayed: int, limit: int = 5000) -> list[OutcomeRow]:
    return [OutcomeRow(**dict(row)) for row in await pool.fetch(_UNSENT, shard, relayed, limit)]


def number(owner: Owner, message: Message, outcome: str, at: int, recorded_at: int) -> OutcomeRow:
    """The message's outcome under the shard's next number."""
    seq = owner.next_seq
    owner.next_seq += 1
    return OutcomeRow(
        message.shard, owner.gen, seq, message.user_id, message.message_id, message.campaign, message.variant,
        outcome, message.reason, message.provider, at, recorded_at, message.chain,
    )  # fmt: skip


async def make_month(connection: Connection, month: str) -> None:
    """Make the partition of a month's messages, where there is none; in a transaction that writes none before."""
    if not (len(month) == 4 and month.isdecimal()):
        raise ValueError(f"not a month: {month!r}")
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('perennial.partitions'))")
    await connection.execute(
        f"CREATE TABLE IF NOT EXISTS notifier.message_{month} PARTITION OF notifier.message"
        f" FOR VALUES IN ('{month}') WITH (fillfactor = 70)"
    )


class Months:
    """Partitions of notifier.message; each month's is made before its first message."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._made: set[str] = set()

    async def ensure(self, months: Iterable[str]) -> None:
        for month in sorted(set(months) - self._made):
            async with transaction(self._pool) as connection:
                await make_month(connection, month)
            self._made.add(month)
