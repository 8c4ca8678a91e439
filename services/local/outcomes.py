"""How messages that the database has lost are put back from `push.outcomes.v1`, so that nobody is told twice.

A message's id is the occurrence's: once its row is there again, the same occurrence is planned no second time. All of
it may be done again at any time; rows that are there stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from services.local.children import Say
from services.notifier.messages import make_month, month_in
from shared.contracts.asyncapi import PushOutcome
from shared.contracts.topics import Names, Topic
from shared.data.db import Connection
from shared.data.ledger import prepare_partitions
from shared.kafka.log_reader import LogReader
from shared.kafka.records import InRecord
from shared.process.clock import monotonic, month_of, parse_instant

_SAY_SECONDS = 2.0
_SENT_AGAIN = 20_000
"""More records than the relay sends again after a failure: a batch, and what it had not noted as acknowledged."""

_KNOWN = """
SELECT s.shard, coalesce((SELECT max(o.seq) FROM notifier.outcome o WHERE o.shard = s.shard), 0) AS seq
FROM unnest($1::int[]) AS s(shard)
"""
_SETTLE = """
UPDATE notifier.message m SET state = n.state, reason = n.reason, provider = n.provider, finished_at = n.at,
    attempted_at = CASE WHEN n.state IN ('sent', 'unknown') THEN coalesce(m.attempted_at, n.at) ELSE m.attempted_at END
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[])
    AS n(month, message_id, state, reason, provider, at)
WHERE m.month = n.month AND m.message_id = n.message_id AND m.state IN ('held', 'waiting', 'intent', 'attempted')
RETURNING m.message_id
"""
# what the topic does not say stays empty: version, occurrence, device, text, cause, category, what an alert told.
# What went out uses up caps of all categories.
_INSERT = """
INSERT INTO notifier.message (month, message_id, shard, user_id, campaign, campaign_version, variant, occurrence, state,
    reason, provider, planned_at, finished_at, attempted_at, counts, chain)
SELECT n.month, n.message_id, n.shard, n.user_id, n.campaign, 0, n.variant, '', n.state, n.reason, n.provider, n.at,
    CASE WHEN n.ended THEN n.at END, CASE WHEN n.state IN ('sent', 'unknown') THEN n.at END,
    n.state IN ('sent', 'unknown'), n.chain
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::boolean[], $8::int[],
    $9::text[], $10::text[], $11::text[], $12::text[])
    AS n(month, message_id, state, reason, provider, at, ended, shard, user_id, campaign, variant, chain)
ON CONFLICT (month, message_id) DO NOTHING RETURNING message_id
"""
_TAPPED = """
UPDATE notifier.message m SET opened_at = n.at
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS n(month, message_id, at)
WHERE m.month = n.month AND m.message_id = n.message_id AND m.opened_at IS NULL RETURNING m.message_id
"""
_OUTCOME = """
INSERT INTO notifier.outcome (shard, gen, seq, user_id, message_id, campaign, variant, outcome, reason, provider,
    occurred_at, recorded_at, chain)
SELECT * FROM unnest($1::int[], $2::int[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
    $9::text[], $10::text[], $11::bigint[], $12::bigint[], $13::text[])
ON CONFLICT (shard, seq, recorded_at) DO NOTHING
"""

_decode = msgspec.json.Decoder(PushOutcome).decode


@dataclass
class Recovered:
    """How many messages were put back, brought to their end, and known again as opened."""

    read: int = 0
    put_back: int = 0
    settled: int = 0
    opened: int = 0

    def __str__(self) -> str:
        return (
            f"{self.read} outcomes read, {self.put_back} messages put back, {self.settled} settled,"
            f" {self.opened} known as opened"
        )


async def recover(
    connection: Connection, reader: LogReader, names: Names, shards: Sequence[int], say: Say
) -> Recovered:
    """Write what `push.outcomes.v1` says behind the last outcome the database has of each shard.

    A page is one transaction. After an interruption it goes on behind what was written.
    """
    topic = names.topic(Topic.OUTCOMES)
    known = {row["shard"]: row["seq"] for row in await connection.fetch(_KNOWN, list(shards))}
    recovered, months, said_at = Recovered(), set[str](), monotonic()
    async for page in reader.behind(topic, await _first_unknown(reader, topic, known)):
        told = [(record, _decode(record.value or b"")) for record in page]
        fresh = [(record, one) for record, one in told if one.seq > known[record.partition]]
        recovered.read += len(fresh)
        async with connection.transaction():
            await _write(connection, fresh, months, recovered)
        if monotonic() - said_at > _SAY_SECONDS:
            said_at = monotonic()
            say(str(recovered))
    return recovered


async def _first_unknown(
    reader: LogReader, topic: str, known: Mapping[int, int], again: int = _SENT_AGAIN
) -> dict[int, int]:
    """An offset of each partition that nothing unknown lies before.

    Numbers rise by one, but after a failure the relay goes back to some number and sends on from there: behind a known
    one every unknown one is still to come. So halving may end at any place where an unknown number follows a known one,
    and `again` before it: the relay may have ended for good before it came back to where it had been.
    """
    starts, ends = await reader.starts(topic, known), await reader.ends(topic, known)
    low = dict(starts)
    high = {shard: max(starts[shard], ends[shard]) for shard in known}
    while open_ := {shard: (low[shard] + high[shard]) // 2 for shard in known if low[shard] < high[shard]}:
        for shard, record in (await reader.at(topic, open_)).items():
            if record is None:  # a hole tells nothing: read all
                low[shard] = high[shard] = starts[shard]
            elif _decode(record.value or b"").seq > known[shard]:
                high[shard] = open_[shard]
            else:
                low[shard] = open_[shard] + 1
    return {shard: max(starts[shard], offset - again) for shard, offset in low.items()}


async def _write(
    connection: Connection, told: list[tuple[InRecord, PushOutcome]], months: set[str], recovered: Recovered
) -> None:
    recorded = {(one.shard, one.seq): _recorded_at(record) for record, one in told}
    await _partitions(connection, (one.message_id for _, one in told), recorded.values(), months)
    ends: dict[str, PushOutcome] = {}
    taps: dict[str, PushOutcome] = {}
    for _, one in told:
        # of several the first counts, as it did when it was written
        (taps if one.outcome == "opened" else ends).setdefault(one.message_id, one)
    columns = [list(column) for column in zip(*map(_ended, ends.values()), strict=True)]
    if columns:
        recovered.settled += len(await connection.fetch(_SETTLE, *columns[:6]))
        recovered.put_back += len(await connection.fetch(_INSERT, *columns))
    if taps:
        at = [parse_instant(one.occurred_at) for one in taps.values()]
        recovered.opened += len(await connection.fetch(_TAPPED, [*map(month_in, taps)], [*taps], at))
    rows = [
        (
            one.shard, one.gen, one.seq, one.user_id, one.message_id, one.campaign, one.variant, one.outcome,
            one.reason, one.provider, parse_instant(one.occurred_at), recorded[one.shard, one.seq], one.chain,
        )
        for _, one in told
    ]  # fmt: skip
    if rows:
        await connection.execute(_OUTCOME, *map(list, zip(*rows, strict=True)))


def _ended(one: PushOutcome) -> tuple[object, ...]:
    return (
        month_in(one.message_id), one.message_id, one.outcome, one.reason, one.provider, parse_instant(one.occurred_at),
        one.outcome in ("sent", "failed", "unknown"), one.shard, one.user_id, one.campaign, one.variant,
        one.chain,
    )  # fmt: skip


def _recorded_at(record: InRecord) -> int:
    return parse_instant(dict(record.headers)["ce_time"].decode())


async def _partitions(
    connection: Connection, message_ids: Iterable[str], recorded: Iterable[int], made: set[str]
) -> None:
    """Make the partitions that these rows fall into."""
    for month in sorted({month_in(i) for i in message_ids} - made):
        await make_month(connection, month)
        made.add(month)
    for month, at in {f"recorded {month_of(at)}": at for at in recorded}.items():
        if month not in made:
            await prepare_partitions(connection, at)
            made.add(month)
