"""When does a schedule set a campaign going, where, and what of it was missed?

For each moment of a schedule there is one run for each zone whose clock shows it, made by whoever owns the context log,
under its fence: the runs and how far moments were judged are one commit. So a moment is judged once, whatever dies, and
a schedule that comes into force is asked for later moments only.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import msgspec

from services.notifier import forecasts
from services.notifier.book import Active, CampaignBook
from services.notifier.context.intake import Triggered
from services.notifier.domain.frequency_cap import DAY_MS
from services.notifier.domain.schedule import Moment, moments, over_at, zones
from services.notifier.runs import RUN_SHARDS
from shared.contracts.rules import ScheduleTrigger
from shared.data.db import Connection
from shared.data.shard_owner import Owner
from shared.gazetteer import Gazetteer
from shared.kafka.fenced_reader import FencedReader
from shared.kafka.shard_consumer import Reassigned
from shared.process.clock import Clock
from shared.process.errors import Fatal, Transient
from shared.process.metrics import BUGS, CITIES_WITHOUT_FORECAST, SCHEDULED, begin_each
from shared.process.retry import backoff_seconds

log = logging.getLogger("perennial.scheduler")

_LOOK_SECONDS = 0.25
_COUNTED_DAYS = 31
"""What was missed before is not even counted."""

_JUDGED = "SELECT campaign, trigger, judged_until FROM notifier.schedule"
_JUDGE = """
INSERT INTO notifier.schedule (campaign, trigger, judged_until) VALUES ($1, $2, $3) ON CONFLICT (campaign)
DO UPDATE SET trigger = excluded.trigger, judged_until = greatest(notifier.schedule.judged_until, excluded.judged_until)
"""
_FORGET = "DELETE FROM notifier.schedule WHERE campaign <> ALL($1::text[])"
_CITIES = "SELECT DISTINCT city_id FROM audience.cohort WHERE relation = ANY($1::text[]) AND users > 0"
_RUN = """
INSERT INTO notifier.run (run_id, campaign, campaign_version, occurrence, context_id, log_id, context_offset, city_ids,
    relations, facts, occurred_at, began_at, valid_until, created_at, context, zone)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, '{}', $10, $11, $12, $13, $14, $15) ON CONFLICT DO NOTHING RETURNING run_id
"""
Became = Literal["run", "missed", "no_forecast", "nobody", "repeat"]
"""What a moment came to: a run; nothing, for it came too late, or no forecast held in any of its cities, or no user has
one of them; or there was a run of it already."""


class Cause(NamedTuple):
    """The record of the context log that asked for a run; none for a schedule's own."""

    context_id: str = ""
    log_id: str = ""
    offset: int = -1


_OWN = Cause()


@dataclass(slots=True)
class Counts:
    """What a transaction does; shown once it is committed."""

    became: Counter[Became] = field(default_factory=Counter)
    cities_without_forecast: int = 0

    def show(self) -> None:
        for became, number in self.became.items():
            SCHEDULED.labels(became).inc(number)
        CITIES_WITHOUT_FORECAST.inc(self.cities_without_forecast)


class Scheduler:
    """`reader` is the context log's, set by the composition root."""

    reader: FencedReader

    def __init__(
        self, book: CampaignBook, gazetteer: Gazetteer, clock: Clock, shards: int, made_run: Callable[[], None]
    ) -> None:
        self._book, self._gazetteer, self._clock, self._shards = book, gazetteer, clock, shards
        self._made_run = made_run
        self._look_at = 0
        self._looked: tuple[int, list[Active]] = (-1, [])
        begin_each(SCHEDULED, get_args(Became))

    async def run(self) -> None:
        """Judge moments for ever, while the context log is ours."""
        attempt = 0
        while True:
            await asyncio.sleep(_LOOK_SECONDS + (backoff_seconds(attempt) if attempt else 0.0))
            try:
                await self._look()
                attempt = 0
            except Reassigned:
                continue
            except Transient as error:
                self.reader.doubt(error)
                attempt += 1
            except Fatal:
                raise
            except Exception:
                # alerts go on, whatever is wrong with a schedule
                BUGS.labels("context").inc()
                log.exception("a bug")
                attempt += 1

    async def _look(self) -> None:
        """Judge what has come since the last look; the database is not asked where nothing has."""
        owned = self.reader.shards.get(0)
        if owned is None:
            return
        campaigns, now = self._book.on_schedule, self._clock.now_ms()
        epoch, seen = self._looked
        if now < self._look_at and epoch == owned.owner.epoch and seen is campaigns:
            return
        counts = Counts()

        async def write(connection: Connection, _: Mapping[int, Owner]) -> None:
            await self._judge(connection, campaigns, now, counts)

        await self.reader.commit([0], {}, write)
        self._looked = (owned.owner.epoch, campaigns)
        self._look_at = self._next(campaigns, now)
        counts.show()
        if counts.became["run"]:
            self._made_run()

    def _next(self, campaigns: Iterable[Active], now_ms: int) -> int:
        """Before which instant there is nothing to judge."""
        found = [now_ms + DAY_MS]
        for active in campaigns:
            trigger = _schedule(active)
            for zone in zones(trigger, self._gazetteer.zones):
                found += [moment.at for moment in moments(trigger, zone, now_ms, now_ms + DAY_MS)[:1]]
        return min(found)

    async def _judge(self, connection: Connection, campaigns: list[Active], now_ms: int, counts: Counts) -> None:
        judged = {row["campaign"]: row for row in await connection.fetch(_JUDGED)}
        await connection.execute(_FORGET, [active.campaign.id for active in campaigns])
        for active in campaigns:
            told = msgspec.json.encode(active.campaign.trigger).decode()
            known = judged.get(active.campaign.id)
            if active.campaign.enabled and known is not None and known["trigger"] == told:
                after = max(known["judged_until"], now_ms - _COUNTED_DAYS * DAY_MS)
                await self._make_due(connection, active, after, now_ms, counts)
            await connection.execute(_JUDGE, active.campaign.id, told, now_ms)

    async def _make_due(
        self, connection: Connection, active: Active, after_ms: int, now_ms: int, counts: Counts
    ) -> None:
        """Runs for the moments since `after_ms` that are still worth telling."""
        campaign, trigger = active.campaign, _schedule(active)
        asked = {zone: moments(trigger, zone, after_ms, now_ms) for zone in zones(trigger, self._gazetteer.zones)}
        if not any(asked.values()):
            return
        by_zone: defaultdict[str, list[int]] = defaultdict(list)
        for city in await _cities(connection, trigger):
            if (place := self._gazetteer.get(city)) is not None:
                by_zone[place.timezone if trigger.zone == "local" else trigger.zone].append(city)
        for zone, cities in by_zone.items():
            for moment in asked[zone]:
                over = over_at(trigger, zone, moment.at)
                if now_ms - moment.at > campaign.freshness_seconds * 1000 or (over is not None and over <= now_ms):
                    counts.became["missed"] += 1
                    told = {"campaign": campaign.id, "moment": moment.name, "zone": zone}
                    log.warning("a moment was missed", extra={"fields": told})
                else:
                    await self._make(connection, active, moment, cities, now_ms, counts, zone=zone, over=over)

    async def trigger(
        self, connection: Connection, told: Triggered, log_id: str, offset: int, at_ms: int, counts: Counts
    ) -> tuple[Became, int]:
        """Set a campaign going by hand, in the context handler's transaction: what it came to, in how many cities."""
        active = self._book.by_id.get(told.campaign)
        if active is None or not isinstance(active.campaign.trigger, ScheduleTrigger):
            return "nobody", 0
        cities = await _cities(connection, active.campaign.trigger)
        if told.city_ids is not None:
            cities = sorted(set(cities).intersection(told.city_ids))
        moment, cause = Moment(at_ms, told.id, at_ms), Cause(told.id, log_id, offset)
        return await self._make(connection, active, moment, cities, self._clock.now_ms(), counts, cause=cause)

    async def _make(
        self,
        connection: Connection,
        active: Active,
        moment: Moment,
        cities: list[int],
        now_ms: int,
        counts: Counts,
        *,
        zone: str = "",
        over: int | None = None,
        cause: Cause = _OWN,
    ) -> tuple[Became, int]:
        """One run, in those cities of which there is something to tell; what came of it, and how many these are."""
        trigger = _schedule(active)
        became: Became = "run" if cities else "nobody"
        if cities and trigger.context == "forecast":
            told = sorted((await forecasts.cities(connection, now_ms)).intersection(cities))
            counts.cities_without_forecast += len(cities) - len(told)
            became, cities = "run" if told else "no_forecast", told
        if cities:
            values = (cities, list(trigger.relations), moment.at, moment.began_at, over, now_ms, trigger.context, zone)
            run_id = _run_id(active.campaign.id, moment.name, zone)
            version = active.campaign.version
            if await connection.fetchval(_RUN, run_id, active.campaign.id, version, moment.name, *cause, *values):
                await connection.execute(RUN_SHARDS, run_id, self._shards)
            else:
                became = "repeat"
        counts.became[became] += 1
        return became, len(cities)


def _schedule(active: Active) -> ScheduleTrigger:
    trigger = active.campaign.trigger
    assert isinstance(trigger, ScheduleTrigger)
    return trigger


def _run_id(campaign: str, moment: str, zone: str) -> str:
    return "r-" + hashlib.blake2b(f"{campaign}\x1f{moment}\x1f{zone}".encode(), digest_size=10).hexdigest()


async def _cities(connection: Connection, trigger: ScheduleTrigger) -> list[int]:
    """Where there are users that the schedule may concern, ascending."""
    return sorted(row["city_id"] for row in await connection.fetch(_CITIES, list(trigger.relations)))
