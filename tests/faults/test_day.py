"""A whole day of 20,000 phones in all time zones of the United States, two hundred times as fast as it would pass.

It is the day on which the clocks go forward. What the phones received and what the ledger says are both held to what
was promised: once per occurrence, nobody woken but for their safety, no more than the caps allow.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from services.demo import drive, forecasts, phones, weather
from services.demo.phones import Person
from services.local.apache import missing_tools
from services.packs import install_version, load_pack
from shared.contracts.rules import Cap, Limits, QuietHours, Rules
from shared.gazetteer import load as load_gazetteer
from shared.process.clock import Clock, write_clock
from tests.support import day, day_stories
from tests.support.day_stories import HOUR, MINUTE, Script
from tests.support.installation import Rig, eventually, installed

SEED = 20_270_314
PHONES = int(os.environ.get("DAY_PHONES", "20000"))
RATE = float(os.environ.get("DAY_RATE", "200"))
BEGIN = round(datetime(2027, 3, 13, 18, tzinfo=UTC).timestamp() * 1000)
END = BEGIN + 24 * HOUR
LAG = 3 * MINUTE
"""Between the last look at the clock and the arrival of a push there may be this much: less than a second really."""
NIGHT_ALERTS = ("New York, NY", "Chicago, IL", "Phoenix, AZ", "Los Angeles, CA", "Anchorage, AK", "Honolulu, HI")
ZONES = {"America/New_York", "America/Chicago", "America/Denver", "America/Phoenix", "America/Los_Angeles",
         "America/Anchorage", "Pacific/Honolulu"}  # fmt: skip

Write = Callable[[int, Sequence[Person], int, int], Script]


def strict(rules: Rules) -> Rules:
    """The rules with every kind of limit declared, where the pack leaves some out."""
    if rules.limits.quiet_hours.from_:
        return rules
    caps = [Cap(3, hours=24), Cap(2, hours=24, category="lifecycle")]
    limits = Limits(caps, 30, QuietHours("22:00", "07:00", "America/New_York"), 10)
    return msgspec.structs.replace(rules, limits=limits)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("pack", "count", "write"),
    [("weather", PHONES, day_stories.weather), ("commerce", PHONES // 4, day_stories.shop)],
    ids=["weather", "shop"],
)
async def test_a_day_in_all_time_zones(tmp_path: Path, pack: str, count: int, write: Write) -> None:
    if (problem := missing_tools()) is not None:
        pytest.skip(f"NOT TESTED ON APACHE KAFKA: {problem}")
    env = {"PERENNIAL_INGEST_TIME_SECONDS": "0.2", "PERENNIAL_SANDBOX_KEEP": "200000"}
    async with installed(tmp_path / "home", pack=pack, kafka="apache", shards=8, dev=True, env=env) as rig:
        rules = strict(load_pack(pack))
        if rules != load_pack(pack):
            async with rig.database() as connection:
                await install_version(connection, rules)
        everyone = phones.people(SEED, count, load_gazetteer())
        zones = {person.user_id: ZoneInfo(person.timezone) for person in everyone}
        assert {zone.key for zone in zones.values()} >= ZONES
        rig.rate = RATE
        pushes, base, end = await _lived(rig, everyone, write)

        def to_day(real_ms: int) -> int:
            passed = real_ms - base["real"]
            # before that the clock ran as ours does
            return min(end, int(base["virtual"] + (passed * base["rate"] if passed > 0 else passed)))

        users = {person.token: person.user_id for person in everyone if person.token}
        arrived = day.arrived(pushes, users, to_day)
        async with rig.database() as connection:
            ledger = [dict(row) for row in await connection.fetch("SELECT * FROM notifier.message")]
        told = day.table(ledger)
        print("\n" + "\n".join(f"{name:<20} {dict(states)}" for name, states in sorted(told.items())))
        assert not list(day.violations(arrived, zones, rules, LAG))[:20]
        attempted = sorted(
            day.Shown(m["attempted_at"], m["user_id"], m["campaign"], m["message_id"])
            for m in ledger
            if m["attempted_at"] is not None
        )
        assert not list(day.violations(attempted, zones, rules, 0))[:20]
        occurrences = [(m["user_id"], m["campaign"], m["occurrence"]) for m in ledger]
        assert len(occurrences) == len(set(occurrences))
        assert {s.message_id for s in arrived} == {m["message_id"] for m in ledger if m["state"] == "sent"}
        for campaign in rules.campaigns:
            states = told[campaign.id]
            assert states["sent"] > 0, f"{campaign.id} sent nothing: {states}"
            assert any(s.startswith("suppressed") for s in states), f"{campaign.id} was never stopped: {states}"
            assert not campaign.holdout_percent or states["held_out"] > 0, f"{campaign.id} held nobody out: {states}"
        # in the shop most who are met at night can be told in the morning
        assert pack == "commerce" or sum(states["suppressed quiet_hours"] for states in told.values()) > 0
        await rig.equal()


async def _lived(rig: Rig, everyone: list[Person], write: Write) -> tuple[list[dict[str, Any]], dict[str, float], int]:
    """Post what was before, let the day pass, and stop the clock: every push that reached the sandbox, how the day's
    time followed from ours, and when it stopped."""
    file = rig.installation.home.clock_file
    write_clock(file, BEGIN)
    clock = Clock(str(file))
    script = write(SEED, everyone, BEGIN, END)
    pushes: list[dict[str, Any]] = []
    async with drive.session() as http:
        gateway = drive.Gateway(http, rig.status["gateway"], rig.status["write_key"])
        users = drive.Phones(gateway, clock, everyone, SEED, day_stories.RUN)
        inbox = drive.Inbox(http, rig.status["sandbox"], users, SEED, 0.0)
        inbox.on_push = pushes.append
        looking = asyncio.create_task(inbox.run())
        try:
            for posts in (script.imported, script.late):
                await day.all_at_once(gateway, posts)
                await rig.drained(300)
            await _forecasts(rig, everyone)
            write_clock(file, clock.now_ms() + 1000, RATE)
            weathering = asyncio.create_task(_weather(rig, clock))
            late = await day.live(gateway, clock, script.strokes, RATE)
            await weathering
            print(f"\nposted at most {late / MINUTE:.1f} minutes of the day late")
            while clock.now_ms() < END:
                await asyncio.sleep(0.2)
            base = json.loads(file.read_text())
            end = clock.now_ms() + 1000
            # delays would go on ending while we look
            write_clock(file, end, rate=0.0)
            await eventually(partial(_due, rig, end), 60)
            await rig.drained(300)
            while not await inbox.quiet():
                await asyncio.sleep(0.2)
            await rig.drained(120)
        finally:
            looking.cancel()
    return pushes, base, end


async def _due(rig: Rig, now_ms: int) -> str:
    async with rig.database() as connection:
        waiting = await connection.fetchval(
            "SELECT count(*) FROM notifier.message WHERE state IN ('held', 'waiting') AND release_at <= $1", now_ms
        )
    return f"{waiting} messages are due" if waiting else ""


async def _forecasts(rig: Rig, everyone: Sequence[Person]) -> None:
    homes = {person.home.city_id: person.home for person in everyone if person.home is not None}
    items = [forecasts.forecast(place, SEED, BEGIN) for place in homes.values()]
    for start in range(0, len(items), forecasts.MOST_ITEMS):
        await rig.alert({"kind": "forecast", "items": items[start : start + forecasts.MOST_ITEMS]})


async def _weather(rig: Rig, clock: Clock) -> None:
    """The national feed in the afternoon; at the deepest of each zone's night a tornado."""
    gazetteer = load_gazetteer()
    cities = [weather.find_city(name, gazetteer) for name in NIGHT_ALERTS]
    by_hour: defaultdict[int, list[Any]] = defaultdict(list)
    for city in cities:
        by_hour[(27 - _hour_at(city, BEGIN)) % 24].append(city)
    by_hour[3].append(None)  # the feed
    for hour in sorted(by_hour):
        while (wait := BEGIN + hour * HOUR - clock.now_ms()) > 0:
            await asyncio.sleep(wait / RATE / 1000)
        for city in by_hour[hour]:
            now = clock.now_ms()
            await rig.alert(weather.feed(now) if city is None else weather.alert("Tornado Warning", city, now))


def _hour_at(city: Any, ms: int) -> int:
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone(ZoneInfo(city.timezone)).hour
