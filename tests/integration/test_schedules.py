"""How a schedule becomes pushes: in each zone at its own time, once per user and day, with the forecast of their city."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from httpx2 import ASGITransport, AsyncClient

from services.notifier import queries, runs
from services.notifier.api import make_app
from services.notifier.context.intake import encode_context, split, trigger
from shared.contracts.rules import Campaign, Limits, QuietHours, Rules, ScheduleTrigger, Template
from shared.contracts.topics import Topic
from shared.data.keys import key_hash
from shared.kafka.sender import Record
from shared.process.clock import iso, write_clock
from shared.process.http import Health
from shared.process.metrics import CITIES_WITHOUT_FORECAST, SCHEDULED
from tests.integration.test_context import _alert, _member_row, _post, _stopped_midway
from tests.integration.test_notifier import Told, _messages
from tests.support import oracle_schedules, oracle_topics
from tests.support.oracle_snapshot import Snapshot
from tests.support.people import BOSTON, CHICAGO, HOUR, NEW_YORK, weather
from tests.support.spine import SHARDS, Notifying, Phones, Site, counted, until, users_of

EAST, WEST = "America/New_York", "America/Los_Angeles"
LOS_ANGELES, DENVER, ANCHORAGE, HONOLULU, PHOENIX = 5368361, 5419384, 5879400, 5856195, 5308655


def _at(hour: int, minute: int = 0, day: int = 10, zone: str = EAST) -> int:
    """An instant of a day in June 2026 by the clock of a zone."""
    return round(datetime(2026, 6, day, hour, minute, tzinfo=ZoneInfo(zone)).timestamp() * 1000)


def _rules(limits: Limits = Limits(), **how: Any) -> Rules:  # noqa: B008 - frozen
    """The one campaign `morning`: seven o'clock, by forecast, unless told otherwise."""
    told = {"at": "07:00", "context": "forecast", "until": "12:00"} | how.pop("trigger", {})
    texts = {"en": Template("{{ city.name }}", "{{ forecast.summary }}" if told["context"] else "Hello")}
    how = {"freshness_seconds": 7200} | how
    campaign = Campaign("morning", "Morning", ScheduleTrigger(**told), texts, **how)
    return msgspec.structs.replace(weather(), campaigns=[campaign], limits=limits)


async def _lives(site: Site, told: Told, user: str, *ties: tuple[str, int], shard: int = 0) -> None:
    """A user with a phone and cities: in the segmenter's tables and counts, and in the feed."""
    rows = [told.device(user)]
    for relation, city in ties:
        rows.append(told.row(user, "cohort_entered", {"relation": relation, "city_id": city}))
        await _member_row(site, shard, user, city, relation, told.seq)
        await _counted(site, shard, f"{relation}:{city}")
    await site.feed(*rows, shard=shard)


async def _counted(site: Site, shard: int, cohort: str) -> None:
    await site.pool.execute(
        "INSERT INTO segmenter.tally VALUES ($1, 'cohort', $2, 1) ON CONFLICT (shard, kind, name)"
        " DO UPDATE SET users = tally.users + 1",
        shard,
        cohort,
    )


async def _moves(site: Site, told: Told, user: str, source: int, target: int) -> None:
    """Another default city."""
    rows = [told.row(user, "cohort_entered", {"relation": "default", "city_id": target})]
    entered = told.seq
    rows.append(told.row(user, "cohort_exited", {"relation": "default", "city_id": source}))
    await site.pool.execute("DELETE FROM segmenter.cohort_member WHERE user_id = $1 AND city_id = $2", user, source)
    await _member_row(site, 0, user, target, "default", entered)
    await site.pool.execute("UPDATE spine.shard_owner SET next_seq = $1 WHERE service = 'segmenter'", told.seq + 1)
    await _counted(site, 0, f"default:{target}")
    await site.feed(*rows, shard=0)


async def _forecast(site: Site, summary: str, *cities: int, begin: int = 0, end: int = 0) -> None:
    body = {
        "id": summary, "kind": "forecast", "areas": [{"city_id": str(c)} for c in cities],
        "starts_at": iso(begin or _at(0)), "ends_at": iso(end or _at(23)), "data": {"summary": summary},
    }  # fmt: skip
    records, _ = split(body, site.gazetteer, site.clock.now_ms())
    await site.produce(Topic.CONTEXT, 0, *(Record(r.id.encode(), encode_context(r)) for r in records))


async def _known(site: Site, *summaries: str) -> None:
    """Wait until these forecasts are the ones that hold for some city."""

    async def read() -> bool:
        rows = await site.rows("SELECT body FROM notifier.forecast")
        return {msgspec.json.decode(row["body"])["summary"] for row in rows} == set(summaries)

    await until(read)


async def _judged(site: Site, running: Notifying, until_ms: int) -> None:
    """Wait until every moment up to an instant was judged, every run expanded and every message settled."""

    async def judged() -> bool:
        running.check()
        # a run and how far moments were judged are one commit, as are a page and its messages
        if (await site.pool.fetchval("SELECT min(judged_until) FROM notifier.schedule") or 0) < until_ms:
            return False
        if await site.pool.fetchval("SELECT count(*) FROM notifier.run_shard WHERE NOT done"):
            return False
        return not {"intent", "attempted"} & {m["state"] for m in await _messages(site)}

    await until(judged)


async def _begun(site: Site, running: Notifying) -> None:
    """The schedule is known: moments from here on count."""
    await _judged(site, running, 1)


async def _set(site: Site, to_ms: int) -> None:
    """Move time, and wait until every clock has noticed."""
    site.move_time(to_ms)
    await asyncio.sleep(0.15)


async def _runs(site: Site) -> list[tuple[str, str, list[int]]]:
    rows = await site.rows("SELECT occurrence, zone, city_ids FROM notifier.run ORDER BY occurred_at, zone")
    return [(r["occurrence"], r["zone"], sorted(r["city_ids"])) for r in rows]


async def _snapshot(site: Site) -> Snapshot:
    """What the oracle looks at; the feed stands in for the segmenter's ledger."""
    made = await site.pool.fetchrow("SELECT salt FROM control.installation")
    assert made is not None
    rules = {r["version"]: msgspec.json.decode(r["body"]) for r in await site.rows("SELECT * FROM control.rules")}
    found = Snapshot(SHARDS, rules, made["salt"])
    found.ledger = [{"shard": s, **msgspec.structs.asdict(row)} for s in range(SHARDS) for row in await site.fed(s)]
    for name, table in (
        ("messages", "message"),
        ("runs", "run"),
        ("run_shards", "run_shard"),
        ("run_pages", "run_page"),
    ):
        setattr(found, name, await site.rows(f"SELECT * FROM notifier.{table}"))
    found.context = (await oracle_topics.read(site.kafka, site.topic(Topic.CONTEXT), 1))[0]
    return found


async def test_each_zone_is_told_at_its_own_seven_over_restarts(
    any_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner dies while the east is told, and is not there when it is seven in the west: nobody twice, nobody not."""
    monkeypatch.setattr("services.notifier.runs._PAGE", 3)
    site, phones, told = any_site, Phones(), Told(any_site)
    site.move_time(_at(6, 50))
    # one that is about to be sent when the owner dies is sent by the next
    await site.install(_rules(on_unknown="retry"))
    east, west = users_of(0, 20), users_of(0, 5, "w")
    for number, user in enumerate(east):
        await _lives(site, told, user, ("default", NEW_YORK if number % 2 else BOSTON))
    for user in west:
        await _lives(site, told, user, ("default", LOS_ANGELES))
    async with site.notifier(phones, context=True) as running:
        await _forecast(site, "sunny", NEW_YORK, LOS_ANGELES)
        await _forecast(site, "foggy", BOSTON)
        await _known(site, "sunny", "foggy")
        await _begun(site, running)
        assert phones.pushes == []
        await _set(site, _at(7))
        await _stopped_midway(site, running)
    async with site.notifier(phones, context=True) as running:
        await _judged(site, running, _at(7))
        assert sorted(p.token for p in phones.pushes) == sorted(f"t-{u}" for u in east)
    await _set(site, _at(8, 30, zone=WEST))
    async with site.notifier(phones, context=True) as running:
        await _judged(site, running, _at(8, 30, zone=WEST))
        await _set(site, _at(9, zone=WEST))
    assert sorted(p.token for p in phones.pushes) == sorted(f"t-{u}" for u in [*east, *west])
    assert Counter((p.title, p.body) for p in phones.pushes) == {
        ("New York City", "sunny"): 10, ("Boston", "foggy"): 10, ("Los Angeles", "sunny"): 5,
    }  # fmt: skip
    assert await _runs(site) == [
        ("2026-06-10", EAST, sorted((NEW_YORK, BOSTON))), ("2026-06-10", WEST, [LOS_ANGELES]),
    ]  # fmt: skip
    # over at noon, wherever it is read
    found = {m["user_id"]: m["expires_at"] for m in await _messages(site)}
    assert all(_at(12) - 1000 < found[u] <= _at(12) for u in east)
    assert all(_at(12, zone=WEST) - 1000 < found[u] <= _at(12, zone=WEST) for u in west)
    (shown,) = await queries.messages(site.pool, SHARDS, west[0], "", "", "", 10)
    assert shown["cause"]["run"]["zone"] == WEST and shown["cause"]["ledger"]["seq"] > 0


async def test_the_oracle_tells_the_same_and_finds_what_is_wrong(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_PAGE", 3)
    site.move_time(_at(6))
    await site.install(_rules(holdout_percent=30))
    phones, told = Phones(), Told(site)
    cities = (NEW_YORK, BOSTON, CHICAGO)
    users = users_of(0, 24)
    for number, user in enumerate(users):
        await _lives(site, told, user, ("default", cities[number % 3]), ("added", cities[(number + 1) % 3]))
    await site.feed(told.row(users[0], "consent_set", {"push": False}), shard=0)
    async with site.notifier(phones, context=True) as running:
        await _forecast(site, "old", NEW_YORK, CHICAGO)
        await _forecast(site, "new", NEW_YORK, begin=_at(6, 30), end=_at(9))
        await _known(site, "old", "new")
        await _begun(site, running)
        await _set(site, _at(7))
        await _judged(site, running, _at(7))
        await _moves(site, told, users[0], NEW_YORK, CHICAGO)
        await site.applied(0, told.seq, "notifier")
        await _set(site, _at(8))
        await _judged(site, running, _at(8))
    snapshot = await _snapshot(site)
    assert oracle_schedules.check(snapshot) == []
    assert len(snapshot.messages) == 16 and len({m["state"] for m in snapshot.messages}) == 3

    def broken(change: Callable[[Snapshot], object]) -> str:
        other = copy.deepcopy(snapshot)
        change(other)
        return "\n".join(oracle_schedules.check(other))

    assert "was not told" in broken(lambda s: s.messages.pop())
    assert "was told 2 times" in broken(lambda s: s.messages.append(s.messages[0] | {"message_id": "again"}))
    assert "should not be" in broken(lambda s: s.context.pop(0))
    assert "should not be" in broken(lambda s: s.messages[0].update(user_id=users[1]))
    assert "was at" in broken(lambda s: s.runs[0].update(occurred_at=s.runs[0]["occurred_at"] + HOUR))
    assert "where" in broken(lambda s: s.runs[0].update(zone="America/Denver"))
    assert "is not expanded" in broken(lambda s: s.run_shards[0].update(done=False))
    assert "should be" in broken(lambda s: s.messages[0].update(state="suppressed", reason="no_device"))
    sent = next(n for n, m in enumerate(snapshot.messages) if m["state"] == "sent")
    assert "what it tells of" in broken(lambda s: s.messages[sent].update(expires_at=_at(13)))


async def test_the_forecast_that_holds_is_told_and_where_there_is_none_nobody_is(site: Site) -> None:
    """A later one replaces what it covers, and ends what goes on into it; the days to come stand beside it."""
    site.move_time(_at(6))
    await site.install(_rules())
    phones, told = Phones(), Told(site)
    near, far, both = users_of(0, 3)
    await _lives(site, told, near, ("default", NEW_YORK))
    await _lives(site, told, far, ("default", BOSTON))
    await _lives(site, told, both, ("default", CHICAGO), ("added", NEW_YORK))
    async with site.notifier(phones, context=True) as running:
        await _forecast(site, "first", NEW_YORK, CHICAGO)
        await _forecast(site, "tomorrow", NEW_YORK, begin=_at(0, day=11), end=_at(23, day=11))
        await _forecast(site, "over", BOSTON, begin=_at(1), end=_at(2))
        await _forecast(site, "second", NEW_YORK, begin=_at(6, 30), end=_at(20))
        await _forecast(site, "nightfall", NEW_YORK, begin=_at(18), end=_at(23))
        await _known(site, "first", "second", "nightfall", "tomorrow")
        rows = await site.rows("SELECT * FROM notifier.forecast WHERE city_id = $1 ORDER BY starts_at", NEW_YORK)
        assert [(r["context_id"], r["starts_at"], r["ends_at"]) for r in rows] == [
            ("first", _at(0), _at(6, 30)), ("second", _at(6, 30), _at(18)), ("nightfall", _at(18), _at(23)),
            ("tomorrow", _at(0, day=11), _at(23, day=11)),
        ]  # fmt: skip
        shown = await queries.context_events(site.pool, "forecast", 10)
        assert {s["id"]: s["cities"] for s in shown} == {"first": 2, "second": 1, "nightfall": 1, "tomorrow": 1}
        await _begun(site, running)
        with counted(CITIES_WITHOUT_FORECAST) as without:
            await _set(site, _at(7))
            await _judged(site, running, _at(7))
        assert without == [1]
        with counted(SCHEDULED, "no_forecast") as nowhere:
            await _set(site, _at(7, day=11))
            await _judged(site, running, _at(7, day=11))
            await _set(site, _at(8, day=11))
            await _judged(site, running, _at(8, day=11))
        assert nowhere == [1]  # Chicago's ended on the day before
    assert Counter((p.token, p.body) for p in phones.pushes) == {
        (f"t-{near}", "second"): 1, (f"t-{near}", "tomorrow"): 1,
    }  # fmt: skip


async def test_what_was_missed_is_made_good_while_it_is_fresh_and_counted_when_it_is_not(site: Site) -> None:
    """What the schedule would have said before it came into force is neither."""
    site.move_time(_at(7, 30))
    await site.install(_rules(trigger={"context": ""}))
    phones, told = Phones(), Told(site)
    (user,) = users_of(0, 1)
    await _lives(site, told, user, ("default", NEW_YORK))
    with counted(SCHEDULED, "missed") as missed:
        async with site.notifier(phones, context=True) as running:
            await _begun(site, running)
            assert await _runs(site) == []
        for day, hour in ((11, 8), (12, 10)):  # down at seven on both days
            await _set(site, _at(hour, day=day))
            async with site.notifier(phones, context=True) as running:
                await _judged(site, running, _at(hour, day=day))
        assert [name for name, _, _ in await _runs(site)] == ["2026-06-11"]
        changed = _rules(trigger={"context": "", "at": "09:00"})
        await site.install(changed)
        async with site.notifier(phones, context=True) as running:  # nine o'clock is past, and was never promised
            await _set(site, _at(10, 30, day=12))
            await asyncio.sleep(0.5)
            await _set(site, _at(9, day=13))
            await _judged(site, running, _at(9, day=13))
        await site.install(msgspec.structs.replace(changed, campaigns=[
            msgspec.structs.replace(changed.campaigns[0], enabled=False),
        ]))  # fmt: skip
        async with site.notifier(phones, context=True) as running:
            await _set(site, _at(9, day=14))
            await _judged(site, running, _at(9, day=14))
    assert missed == [1]
    assert [name for name, _, _ in await _runs(site)] == ["2026-06-11", "2026-06-13"]
    assert len(phones.pushes) == 2


async def test_who_has_two_cities_or_changes_them_is_told_once_a_day(site: Site) -> None:
    site.move_time(_at(6, 50))
    await site.install(_rules(trigger={"context": "", "relations": ["default", "added"]}))
    phones, told = Phones(), Told(site)
    two, moves = users_of(0, 2)
    await _lives(site, told, two, ("added", NEW_YORK), ("default", BOSTON), ("added", CHICAGO))
    await _lives(site, told, moves, ("default", NEW_YORK))
    async with site.notifier(phones, context=True) as running:
        await _begun(site, running)
        await _set(site, _at(7))
        await _judged(site, running, _at(7))
        await _moves(site, told, moves, NEW_YORK, CHICAGO)
        await site.applied(0, told.seq, "notifier")
        await _set(site, _at(8))
        await _judged(site, running, _at(8))
        assert [zone for _, zone, _ in await _runs(site)] == [EAST, "America/Chicago"]
        # the default city first, and nothing more in Chicago
        assert sorted((p.token, p.title) for p in phones.pushes) == sorted(
            [(f"t-{two}", "Boston"), (f"t-{moves}", "New York City")]
        )
        await _set(site, _at(8, day=11))
        await _judged(site, running, _at(8, day=11))
    assert Counter(p.token for p in phones.pushes) == {f"t-{two}": 2, f"t-{moves}": 2}
    assert phones.pushes[-1].title in ("Boston", "Chicago")


async def test_what_was_held_is_told_by_the_forecast_that_holds_at_its_release(site: Site) -> None:
    """Of a forecast that is over nothing is told, and nothing of a city that its user has left."""
    site.move_time(_at(6))
    quiet = Limits(quiet_hours=QuietHours("22:00", "08:00", EAST))
    await site.install(_rules(quiet))
    phones, told = Phones(), Told(site)
    stays, over, leaves = users_of(0, 3)
    await _lives(site, told, stays, ("default", NEW_YORK))
    await _lives(site, told, over, ("default", BOSTON))
    await _lives(site, told, leaves, ("default", NEW_YORK))
    async with site.notifier(phones, context=True) as running:
        await _forecast(site, "old", NEW_YORK)
        await _forecast(site, "short", BOSTON, end=_at(8, 1))
        await _known(site, "old", "short")
        await _begun(site, running)
        await _set(site, _at(7))
        await _judged(site, running, _at(7))
        assert {m["state"] for m in await _messages(site)} == {"held"}
        await _forecast(site, "new", NEW_YORK, begin=_at(6, 30))
        await _known(site, "old", "new", "short")
        await _moves(site, told, leaves, NEW_YORK, CHICAGO)
        await site.applied(0, told.seq, "notifier")
        await _set(site, _at(8, 2))

        async def released() -> bool:
            running.check()
            return not {"held", "intent", "attempted"} & {m["state"] for m in await _messages(site)}

        await until(released)
    assert {m["user_id"]: (m["state"], m["reason"], m["body"]) for m in await _messages(site)} == {
        stays: ("sent", "", "new"), over: ("suppressed", "expired", ""), leaves: ("suppressed", "left_audience", ""),
    }  # fmt: skip


async def test_a_day_in_seconds_misses_nothing_and_doubles_nothing(site: Site) -> None:
    """Two hours a second: every zone once and not before its seven, though time never stands still."""
    site.move_time(_at(6, 55))
    await site.install(_rules(trigger={"context": "", "until": ""}, freshness_seconds=43_200))
    phones, told = Phones(), Told(site)
    cities = (NEW_YORK, CHICAGO, DENVER, PHOENIX, LOS_ANGELES, ANCHORAGE, HONOLULU)
    users = users_of(0, len(cities))
    for user, city in zip(users, cities, strict=True):
        await _lives(site, told, user, ("default", city))
    async with site.notifier(phones, context=True) as running:
        await _begun(site, running)
        write_clock(site.clock_file, _at(6, 56), rate=7200.0)
        await _judged(site, running, _at(7, zone="Pacific/Honolulu"))
    assert sorted(p.token for p in phones.pushes) == sorted(f"t-{u}" for u in users)
    planned = {m["user_id"]: m["planned_at"] for m in await _messages(site)}
    for user, city in zip(users, cities, strict=True):
        place = site.gazetteer.get(city)
        assert place is not None
        assert 0 <= planned[user] - _at(7, zone=place.timezone) < 12 * HOUR
    assert len(await _runs(site)) == len(cities)


async def test_a_campaign_is_set_going_by_hand_once_for_a_key(site: Site) -> None:
    """Wherever it is not seven, too; where it is told of a forecast, only in cities that have one."""
    site.move_time(_at(15))
    paused = msgspec.structs.replace(_rules().campaigns[0], id="paused", enabled=False)
    await site.install(msgspec.structs.replace(_rules(), campaigns=[*_rules().campaigns, paused, *weather().campaigns]))
    phones, told = Phones(), Told(site)
    near, far = users_of(0, 2)
    await _lives(site, told, near, ("default", NEW_YORK))
    await _lives(site, told, far, ("default", LOS_ANGELES))
    await site.pool.execute(
        "INSERT INTO control.key (sha256, kind, source, scopes) VALUES ($1, 'admin', 'test', '{read,write}')",
        key_hash("secret"),
    )
    async with site.notifier(phones, context=True) as running:
        app = make_app(
            pool=site.pool, book=running.book, gazetteer=site.gazetteer, sender=site.sender,
            context_topic=site.topic(Topic.CONTEXT), clock=site.clock, shards=SHARDS, health=Health(),
        )  # fmt: skip
        http = AsyncClient(
            transport=ASGITransport(app), base_url="http://notifier", headers={"Authorization": "Bearer secret"}
        )

        async def call(campaign: str = "morning", body: Any = None, **headers: str) -> tuple[int, Any]:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            answer = await http.post(f"/v1/campaigns/{campaign}/trigger", json=body, headers=named)
            return answer.status_code, answer.json()

        async def verdicts(count: int) -> dict[str, str]:
            async def there() -> dict[str, str]:
                running.check()
                found = {e["id"]: e["verdict"] for e in await queries.context_events(site.pool, "trigger", 10)}
                return found if len(found) == count else {}

            found: dict[str, str] = await until(there)
            return found

        async with http:
            assert (await call())[0] == 400
            assert (await call("welcome", Idempotency_Key="k"))[0] == 409
            assert (await call("paused", Idempotency_Key="k"))[0] == 409
            assert (await call("nothing", Idempotency_Key="k"))[0] == 404
            assert (await call(body={"areas": [{"city": "Nowhere at all"}]}, Idempotency_Key="k"))[0] == 422
            assert (await call(Idempotency_Key="early"))[0] == 202
            assert await verdicts(1) == {"trigger:morning:early": "no_forecast"}
            posted = await http.post("/v1/context", json={"kind": "forecast", "items": [
                {"id": f"f-{city}", "areas": [{"city_id": str(city)}], "starts_at": iso(_at(0)), "ends_at": iso(_at(23)),
                 "data": {"summary": "sunny", "high": 88, "unit": "F"}} for city in (NEW_YORK, LOS_ANGELES, 1)
            ]})  # fmt: skip
            assert (posted.status_code, posted.json()["accepted"]) == (202, 2)
            assert [u["id"] for u in posted.json()["unreadable"]] == ["f-1"]
            for _ in range(2):
                status, said = await call(body={"areas": [{"city": "New York"}]}, Idempotency_Key="now")
                assert (status, said["context_id"]) == (202, "trigger:morning:now")
            await call(Idempotency_Key="early")
            await call(Idempotency_Key="all")
            assert (await verdicts(3))["trigger:morning:all"] == "run"
            await _judged(site, running, 1)
            listed = (await http.get("/v1/campaigns/morning/runs")).json()["items"]
    assert Counter((p.token, p.body) for p in phones.pushes) == {(f"t-{near}", "sunny"): 2, (f"t-{far}", "sunny"): 1}
    assert {(r["context_id"], r["cities"], r["members"], r["done"]) for r in listed} == {
        ("trigger:morning:now", 1, 1, True), ("trigger:morning:all", 2, 2, True),
    }  # fmt: skip


async def test_an_alert_does_not_wait_for_a_schedule(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages of a great run, a few at a time, come behind those of any alert, though it came later."""
    monkeypatch.setattr(runs, "_PAGE", 2)
    monkeypatch.setattr(runs, "_MEMBERS_AT_ONCE", 2)
    site.move_time(_at(6))
    rules = _rules(trigger={"context": ""})
    severe = next(c for c in weather().campaigns if c.id == "severe_alert")
    await site.install(msgspec.structs.replace(rules, campaigns=[*rules.campaigns, severe]))
    phones, told = Phones(), Told(site)
    for user in users_of(0, 20):
        await _lives(site, told, user, ("default", NEW_YORK))
    call = trigger("morning", "now", None, site.gazetteer, site.clock.now_ms())

    async def made() -> bool:
        return len(await _runs(site)) == 2

    async def nothing(*_: object) -> list[runs.Page]:
        return []

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(runs.Runs, "next_pages", nothing)
        async with site.notifier(phones, context=True):
            await site.produce(Topic.CONTEXT, 0, Record(b"t", encode_context(call)))
            await _post(site, _alert(site, "a", NEW_YORK, ends_at=iso(_at(9))))
            await until(made)
    async with site.notifier(phones, context=True) as running:
        await _judged(site, running, 1)
    assert len(phones.pushes) == 40
    assert all(p.high_priority for p in phones.pushes[:20]) and not any(p.high_priority for p in phones.pushes[20:])
    pages = await site.pool.fetch("SELECT planned_at, count(*) FROM notifier.run_page GROUP BY 1")
    assert len(pages) >= 10
