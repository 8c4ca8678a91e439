"""What a context event sets going: an alert becomes runs, one per campaign that waits for it or follows its chain; a
forecast is kept for its cities; a campaign that was called for by hand gets a run.

Fenced like every reader: the event, its chain, its runs and the position are one commit. The topic has one
partition, so that chains which meet are joined in one order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from services.notifier import forecasts
from services.notifier.book import Active, CampaignBook
from services.notifier.context.alerts import NO_PART, Alert, Verdict, cities_of, valid_until, verdict
from services.notifier.context.forecasts import Forecast
from services.notifier.context.intake import ContextRecord, Triggered, decode_context, read
from services.notifier.domain.alert_chain import waits_for
from services.notifier.forecasts import Told
from services.notifier.runs import RUN_SHARDS
from services.notifier.scheduler import Counts, Scheduler
from shared.contracts.rules import AlertTrigger
from shared.data.db import Connection
from shared.data.shard_owner import Owner, Position
from shared.gazetteer import Gazetteer
from shared.kafka.fenced_reader import FencedReader, OwnedShard
from shared.kafka.shard_consumer import Polled
from shared.kafka.suspects import Suspects
from shared.process.clock import Clock, iso
from shared.process.metrics import ALERTS, FORECASTS

_KNOWN = "SELECT alert_id, chain_id FROM notifier.alert_chain WHERE alert_id = ANY($1::text[])"
_ROOTS = (
    "SELECT alert_id, sent_at FROM notifier.alert_chain WHERE alert_id = ANY($1::text[]) ORDER BY sent_at, alert_id"
)
_JOIN_EVENTS = """
UPDATE notifier.context_event e SET chain_id = $1 FROM notifier.alert_chain c
WHERE c.chain_id = ANY($2::text[]) AND e.context_id = c.alert_id
"""
_JOIN = "UPDATE notifier.alert_chain SET chain_id = $1 WHERE chain_id = ANY($2::text[])"
_LINK = """
INSERT INTO notifier.alert_chain (alert_id, chain_id, sent_at)
SELECT n.id, $2, n.sent_at FROM unnest($1::text[], $3::bigint[]) AS n(id, sent_at) ON CONFLICT (alert_id) DO NOTHING
"""
_REPLACE = """
UPDATE notifier.alert_chain SET replaced_by = $1
WHERE alert_id = ANY($2::text[]) AND alert_id <> $1 AND replaced_by = ''
"""
_FOLLOWED = """
SELECT DISTINCT r.campaign FROM notifier.alert_chain c JOIN notifier.run r ON r.occurrence = c.alert_id
WHERE c.chain_id = $1
"""
_EVENT = """
INSERT INTO notifier.context_event (context_id, kind, chain_id, log_id, context_offset, verdict, cities, body,
    received_at, city_ids, sent_at, valid_until)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT (context_id) DO NOTHING RETURNING context_id
"""
_RUN = """
INSERT INTO notifier.run (run_id, campaign, campaign_version, occurrence, context_id, log_id, context_offset, city_ids,
    relations, facts, occurred_at, began_at, valid_until, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) ON CONFLICT DO NOTHING
"""

_THERE = "SELECT FROM notifier.context_event WHERE context_id = $1"

_ASIDE = "set_aside"


class ContextHandler:
    """The worker of a `FencedReader` on `context.events.v1`; `reader` is set by the composition root."""

    reader: FencedReader

    def __init__(
        self,
        book: CampaignBook,
        gazetteer: Gazetteer,
        clock: Clock,
        shards: int,
        made_run: Callable[[], None],
        scheduler: Scheduler,
    ) -> None:
        self._book, self._gazetteer, self._clock, self._shards = book, gazetteer, clock, shards
        self._made_run, self._scheduler = made_run, scheduler
        self._suspects = Suspects()

    async def take(self, connection: Connection, shards: Mapping[int, OwnedShard]) -> None:
        return

    async def taken(self) -> None:
        return

    def drop(self) -> None:
        self._suspects.release()

    async def idle(self) -> None:
        return

    def suspect(self, error: Exception) -> None:
        self._suspects.failed()

    async def handle(self, polled: Polled) -> None:
        for piece in self._suspects.pieces(polled):
            await self._apply_all(piece)

    async def _apply_all(self, polled: Polled) -> None:
        decoded = {
            shard: [decode_context(r.value or b"") for r in several] for shard, several in polled.records.items()
        }
        self._suspects.trying(polled)
        self._suspects.replace(polled, decoded, _set_aside)
        records = [
            (r.offset, record)
            for shard, several in polled.records.items()
            for r, record in zip(several, decoded[shard], strict=True)
        ]
        others = [
            (offset, record, read(record, self._gazetteer))
            for offset, record in records
            if record.kind in ("forecast", "trigger")
        ]
        positions: dict[int, Position] = {}
        for shard, next_offset in polled.positions.items():
            several = polled.records.get(shard, [])
            positions[shard] = self.reader.advanced(shard, several[-1] if several else None, next_offset)
        log_id = next(iter(positions.values())).log_id
        verdicts: list[str] = []
        told = [Told(one, log_id, n, record.received_at) for n, record, one in others if isinstance(one, Forecast)]
        over, counts = 0, Counts()

        async def write(connection: Connection, _: Mapping[int, Owner]) -> None:
            nonlocal over
            for offset, record in records:
                if record.kind not in ("forecast", "trigger"):
                    verdicts.append(await self._apply(connection, record, log_id, offset))
            # a campaign set going behind a forecast is to find it
            over = await forecasts.keep(connection, told, self._clock.now_ms())
            for offset, record, one in others:
                if isinstance(one, Triggered):
                    await self._trigger(connection, one, record, log_id, offset, counts)

        await self.reader.commit(positions, positions, write)
        for said in verdicts:
            ALERTS.labels(said).inc()
        FORECASTS.labels("kept").inc(len(told) - over)
        FORECASTS.labels("over").inc(over)
        counts.show()
        if records:
            self._made_run()

    async def _trigger(
        self, connection: Connection, told: Triggered, record: ContextRecord, log_id: str, offset: int, counts: Counts
    ) -> None:
        """A campaign called for by hand; a call that is there already does nothing."""
        if not await connection.fetch(_THERE, told.id):
            became, cities = await self._scheduler.trigger(connection, told, log_id, offset, record.received_at, counts)
            body = msgspec.json.encode({"campaign": told.campaign, "key": told.key}).decode()
            at = record.received_at
            await connection.fetchval(
                _EVENT, told.id, record.kind, "", log_id, offset, became, cities, body, at, [], at, 0
            )

    async def _apply(self, connection: Connection, record: ContextRecord, log_id: str, offset: int) -> str:
        """One alert; its verdict, `repeat` when it was there already, `unreadable` when it is none, or one that was set
        aside."""
        if record.kind == _ASIDE:
            return "unreadable"
        alert = read(record, self._gazetteer)
        if not isinstance(alert, Alert):
            return "unreadable"
        said: Verdict = verdict(alert, self._gazetteer, self._clock.now_ms())
        cities = cities_of(alert, self._gazetteer)
        belongs = said not in NO_PART
        chain_id, began_at = await _chain(connection, alert, alert.references if belongs else ())
        fresh = await connection.fetchval(
            _EVENT, alert.id, record.kind, chain_id, log_id, offset, said, len(cities),
            msgspec.json.encode(_facts(alert)).decode(), record.received_at, list(cities), alert.sent_at,
            valid_until(alert),
        )  # fmt: skip
        if fresh is None:
            return "repeat"
        if belongs:
            await connection.execute(_REPLACE, alert.id, [reference for reference, _ in alert.references])
            followed = {row["campaign"] for row in await connection.fetch(_FOLLOWED, chain_id)}
            here = cities if said == "matched" else ()
            for active in self._book.on_alert:
                if active.campaign.id in followed or (here and _wanted(active, alert)):
                    await self._run(connection, active, alert, here, chain_id, began_at, log_id, offset)
        return said

    async def _run(
        self,
        connection: Connection,
        active: Active,
        alert: Alert,
        cities: tuple[int, ...],
        chain_id: str,
        began_at: int,
        log_id: str,
        offset: int,
    ) -> None:
        campaign = active.campaign
        assert isinstance(campaign.trigger, AlertTrigger)
        run_id = (
            "r-" + hashlib.blake2b(f"{campaign.id}\x1f{chain_id}\x1f{alert.id}".encode(), digest_size=10).hexdigest()
        )
        await connection.execute(
            _RUN, run_id, campaign.id, campaign.version, chain_id, alert.id, log_id, offset, list(cities),
            list(campaign.trigger.relations), msgspec.json.encode(_facts(alert)).decode(), alert.sent_at, began_at,
            valid_until(alert), self._clock.now_ms(),
        )  # fmt: skip
        await connection.execute(RUN_SHARDS, run_id, self._shards)


async def _chain(connection: Connection, alert: Alert, references: tuple[tuple[str, int], ...]) -> tuple[str, int]:
    """The chain an alert belongs to and when that began; chains it refers to become one, the oldest.

    Ids that were only referred to belong to the chain too: a feed of active alerts no longer holds the
    alerts that were replaced, but two updates of the same one are one chain all the same.
    """
    ids = [alert.id, *(reference for reference, _ in references)]
    sent = [alert.sent_at, *(at for _, at in references)]
    chains = {row["chain_id"] for row in await connection.fetch(_KNOWN, ids)}
    if chains:
        roots = await connection.fetch(_ROOTS, list(chains))
        chain_id: str = roots[0]["alert_id"]
        if absorbed := [c for c in chains if c != chain_id]:
            await connection.execute(_JOIN_EVENTS, chain_id, absorbed)
            await connection.execute(_JOIN, chain_id, absorbed)
    else:
        chain_id = min(zip(sent, ids, strict=True), key=lambda pair: (pair[0] <= 0, pair))[1]
    await connection.execute(_LINK, ids, chain_id, sent)
    began = await connection.fetchval("SELECT sent_at FROM notifier.alert_chain WHERE alert_id = $1", chain_id)
    return chain_id, began or alert.sent_at


def _wanted(active: Active, alert: Alert) -> bool:
    trigger = active.campaign.trigger
    assert isinstance(trigger, AlertTrigger)
    return waits_for(trigger, alert.event, alert.severity)


def _facts(alert: Alert) -> dict[str, Any]:
    """What templates may say of an alert."""
    return {
        "event": alert.event,
        "severity": alert.severity,
        "headline": alert.headline or None,
        "description": alert.description,
        "instruction": alert.instruction,
        "area": alert.area or None,
        "ends_at": iso(valid_until(alert)),
    }


def _set_aside(record: ContextRecord) -> ContextRecord:
    """What stands in for a record that makes the code fail: it is in the topic and in the log, and does nothing."""
    return msgspec.structs.replace(record, kind=_ASIDE)
