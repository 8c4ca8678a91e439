"""A whole day of 20,000 phones in all time zones of the United States, two hundred times as fast as it would pass.

It is the day on which the clocks go forward. What the phones received and what the ledger says are both held to what
was promised: once per occurrence, nobody woken but for their safety, no more than the caps allow.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import defaultdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from services.demo import drive, forecasts, habits, phones, weather
from services.local.apache import missing_tools
from services.packs import install_version, load_pack
from shared.contracts.rules import Cap, EventTrigger, QuietHours, Rules
from shared.contracts.rules import Limits as Declared
from shared.gazetteer import load as load_gazetteer
from shared.process.clock import Clock, write_clock
from tests.support import day
from tests.support.day import HOUR, MINUTE, Limits
from tests.support.installation import Rig, eventually, installed

SEED = 20_270_314
PHONES = int(os.environ.get("DAY_PHONES", "20000"))
RATE = float(os.environ.get("DAY_RATE", "200"))
BEGIN = round(datetime(2027, 3, 13, 18, tzinfo=UTC).timestamp() * 1000)
END = BEGIN + 24 * HOUR
LAG = 3 * MINUTE
"""Between the last look at the clock and the arrival of a push there may be this much: less than a second really."""
NIGHT_ALERTS = ("New York, NY", "Chicago, IL", "Phoenix, AZ", "Los Angeles, CA", "Anchorage, AK", "Honolulu, HI")


def promised(rules: Rules) -> Rules:
    """The pack with every kind of limit declared."""
    caps = [Cap(3, hours=24), Cap(2, hours=24, category="lifecycle")]
    limits = Declared(caps, 30, QuietHours("22:00", "07:00", "America/New_York"), 10)
    return msgspec.structs.replace(rules, limits=limits)


def limits_of(rules: Rules) -> Limits:
    said = rules.limits
    return Limits(
        quiet=(said.quiet_hours.from_, said.quiet_hours.to),
        caps=tuple((cap.most, cap.hours * HOUR, cap.category) for cap in said.caps),
        gap=said.gap_minutes * MINUTE,
        safety=frozenset(c.id for c in rules.campaigns if c.safety),
        category={c.id: c.category for c in rules.campaigns},
    )


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kafka", [pytest.param("apache", marks=pytest.mark.kafka)])
async def test_a_day_in_all_time_zones(tmp_path: Path, kafka: str) -> None:
    if (problem := missing_tools()) is not None:
        pytest.skip(f"NOT TESTED ON APACHE KAFKA: {problem}")
    env = {"PERENNIAL_INGEST_TIME_SECONDS": "0.2"}
    async with installed(tmp_path / "home", kafka=kafka, shards=8, dev=True, env=env) as rig:
        rules = promised(load_pack("weather"))
        async with rig.database() as connection:
            await install_version(connection, rules)
        everyone = phones.people(SEED, PHONES, load_gazetteer())
        zones = {person.user_id: ZoneInfo(person.timezone) for person in everyone}
        assert {"America/New_York", "America/Phoenix", "America/Anchorage", "Pacific/Honolulu"} <= {
            zone.key for zone in zones.values()
        }
        pushes, base, end = await _live(rig, everyone)

        def to_day(real_ms: int) -> int:
            return min(end, int(base["virtual"] + (real_ms - base["real"]) * base["rate"]))

        users = {person.token: person.user_id for person in everyone if person.token}
        arrived = day.arrived(pushes, users, to_day)
        async with rig.database() as connection:
            ledger = [dict(row) for row in await connection.fetch("SELECT * FROM notifier.message")]
        told = _table(ledger)
        print("\n" + "\n".join(f"{name:<20} {states}" for name, states in sorted(told.items())))
        limits = limits_of(rules)
        assert not list(day.violations(arrived, zones, limits, LAG))[:20]
        attempted = sorted(
            day.Shown(m["attempted_at"], m["user_id"], m["campaign"], m["message_id"])
            for m in ledger
            if m["attempted_at"] is not None
        )
        assert not list(day.violations(attempted, zones, limits, 0))[:20]
        occurrences = [(m["user_id"], m["campaign"], m["occurrence"]) for m in ledger]
        assert len(occurrences) == len(set(occurrences))
        assert {s.message_id for s in arrived} == {m["message_id"] for m in ledger if m["state"] == "sent"}
        for campaign in rules.campaigns:
            states = told[campaign.id]
            if isinstance(campaign.trigger, EventTrigger) and campaign.trigger.delay_minutes >= 24 * 60:
                assert states.get("waiting", 0) > 0, f"nobody waits for the end of {campaign.id}'s delay: {states}"
                continue
            assert states.get("sent", 0) > 0, f"{campaign.id} sent nothing: {states}"
            assert any(s.startswith("suppressed") for s in states), f"{campaign.id} was never stopped: {states}"
            held_out = states.get("held_out", 0)
            assert not campaign.holdout_percent or held_out > 0, f"{campaign.id} held nobody out: {states}"
        assert sum(states.get("suppressed quiet_hours", 0) for states in told.values()) > 0
        await rig.equal()


async def _live(rig: Rig, everyone: list[phones.Person]) -> tuple[list[dict[str, Any]], dict[str, float], int]:
    """Import what was before, then let the day pass, and stop the clock: every push that reached the sandbox, how the
    day's time followed from ours, and when it stopped."""
    installation = rig.installation
    write_clock(installation.home.clock_file, BEGIN)
    clock = Clock(str(installation.home.clock_file))
    pushes: list[dict[str, Any]] = []
    async with drive.session() as http:
        gateway = drive.Gateway(http, rig.status["gateway"], rig.status["write_key"])
        users = drive.Phones(gateway, clock, everyone, SEED, day.RUN)
        inbox = drive.Inbox(http, rig.status["sandbox"], users, SEED, 0.0)
        inbox.on_push = pushes.append
        earlier = [post for p in everyone if (post := habits.history(p, BEGIN)) is not None]
        await day.all_at_once(gateway, earlier)
        homes = {p.home.city_id: p.home for p in everyone if p.home is not None}
        told = [forecasts.forecast(place, SEED, BEGIN) for place in homes.values()]
        for start in range(0, len(told), forecasts.MOST_ITEMS):
            await rig.alert({"kind": "forecast", "items": told[start : start + forecasts.MOST_ITEMS]})
        await rig.drained(300)
        looking = asyncio.create_task(inbox.run())
        try:
            write_clock(installation.home.clock_file, clock.now_ms() + 1000, RATE)
            weathering = asyncio.create_task(_weather(rig, clock))
            late = await day.live(gateway, clock, day.strokes(SEED, everyone, clock.now_ms(), END), RATE)
            await weathering
            print(f"\nposted at most {late / MINUTE:.1f} minutes of the day late")
            base = json.loads(installation.home.clock_file.read_text())
            end = clock.now_ms() + 1000
            # delays would go on ending while we look
            write_clock(installation.home.clock_file, end, rate=0.0)
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
            body = (
                weather.feed(clock.now_ms()) if city is None else weather.alert("Tornado Warning", city, clock.now_ms())
            )
            await rig.alert(body)


def _hour_at(city: Any, ms: int) -> int:
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone(ZoneInfo(city.timezone)).hour


def _table(ledger: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """By campaign, how many messages came to each end."""
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for m in ledger:
        state = m["state"] if m["state"] != "suppressed" else f"suppressed {m['reason']}"
        found[m["campaign"]][state] = found[m["campaign"]].get(state, 0) + 1
    return found
