"""How a weather alert becomes pushes: once per user and chain, to those who are in its cities at that moment."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from services.notifier import dispatch
from services.notifier.context import handler
from services.notifier.context.alerts import Alert, Verdict, verdict
from services.notifier.context.intake import ContextRecord, encode_context
from shared.contracts.topics import Topic
from shared.kafka.sender import Record
from shared.process.clock import iso
from tests.integration.test_notifier import Told
from tests.support.people import BOSTON, CHICAGO, HOUR, NEW_YORK
from tests.support.spine import Notifying, Phones, Site, until, users_of


def _alert(site: Site, alert_id: str, *cities: int, severity: str = "Severe", **more: Any) -> dict[str, Any]:
    now = site.clock.now_ms()
    data = {"event": "Tornado Warning", **more.pop("data", {})}
    return {
        "id": alert_id, "kind": "alert", "areas": [{"city_id": str(c)} for c in cities], "severity": severity,
        "starts_at": iso(now - 60_000), "ends_at": iso(now + HOUR), "data": data, **more,
    }  # fmt: skip


async def _post(site: Site, *alerts: dict[str, Any]) -> None:
    records = [
        ContextRecord(a["id"], "alert", site.clock.now_ms(), msgspec.Raw(msgspec.json.encode(a))) for a in alerts
    ]
    await site.produce(Topic.CONTEXT, 0, *(Record(r.id.encode(), encode_context(r)) for r in records))


async def _member(site: Site, told: Told, shard: int, user: str, city: int, relation: str = "added") -> None:
    """A user with a phone in a cohort: in the segmenter's tables, and in the feed."""
    rows = [told.device(user), told.row(user, "cohort_entered", {"relation": relation, "city_id": city})]
    await _member_row(site, shard, user, city, relation, told.seq)
    await site.feed(*rows, shard=shard)


async def _member_row(site: Site, shard: int, user: str, city: int, relation: str, seq: int) -> None:
    await site.pool.execute(
        "INSERT INTO segmenter.cohort_member VALUES ($1, $2, $3, $4, $5)", shard, city, relation, user, seq
    )
    await site.pool.execute(
        "INSERT INTO spine.shard_owner (service, shard, next_seq) VALUES ('segmenter', $1, $2)"
        " ON CONFLICT (service, shard) DO UPDATE SET next_seq = excluded.next_seq",
        shard,
        seq + 1,
    )


async def _verdicts(site: Site) -> dict[str, str]:
    return {
        r["context_id"]: r["verdict"] for r in await site.rows("SELECT context_id, verdict FROM notifier.context_event")
    }


async def _expanded(site: Site, running: Notifying, alerts: int) -> None:
    """Every alert is judged, every run expanded over all shards, every message settled."""

    async def done() -> bool:
        running.check()
        # in the order in which they come to be: a verdict and its runs are one commit, a page and its messages another
        judged = len(await _verdicts(site))
        open_runs = await site.pool.fetchval("SELECT count(*) FROM notifier.run_shard WHERE NOT done")
        waiting = await site.pool.fetchval(
            "SELECT count(*) FROM notifier.message WHERE state IN ('intent', 'attempted')"
        )
        return judged == alerts and not open_runs and not waiting

    await until(done)


async def _stopped_midway(site: Site, running: Notifying) -> None:
    """Ended once some page was planned."""

    async def begun() -> bool:
        running.check()
        return bool(await site.pool.fetchval("SELECT sum(planned) FROM notifier.run_shard"))

    await until(begun)
    await running.stop()
    running.tasks.clear()


async def test_an_alert_reaches_each_user_of_its_cities_once(any_site: Site) -> None:
    site, phones = any_site, Phones()
    tolds = {0: Told(site, 0), 1: Told(site, 1)}
    near, both, far = users_of(0, 3)
    (other,) = users_of(1, 1)
    await _member(site, tolds[0], 0, near, NEW_YORK, "default")
    await _member(site, tolds[0], 0, both, NEW_YORK, "default")
    await _member(site, tolds[0], 0, both, BOSTON)
    await _member(site, tolds[0], 0, far, CHICAGO)
    await _member(site, tolds[1], 1, other, BOSTON)
    await _post(site, _alert(site, "a1", NEW_YORK, BOSTON))
    async with site.notifier(phones, context=True) as running:
        await _expanded(site, running, 1)
    assert sorted(p.token for p in phones.pushes) == sorted(f"t-{u}" for u in (near, both, other))
    messages = await site.rows("SELECT user_id, run_id, cause_seq, title FROM notifier.message")
    assert len({m["run_id"] for m in messages}) == 1
    # a user of two of its cities is told of the one that is theirs by default, and traced back to how they came there
    assert {m["user_id"]: m["cause_seq"] for m in messages} == {near: 2, both: 4, other: 2}
    assert next(m["title"] for m in messages if m["user_id"] == both).endswith("New York City, NY (+ Boston)")
    assert {p.high_priority for p in phones.pushes} == {True}
    assert all(3500 <= p.ttl_seconds <= 3600 for p in phones.pushes)


async def test_a_chain_of_updates_is_one_push_per_user(any_site: Site) -> None:
    """Updates refer to what they replace, also to what this feed never held; a repeated post is nothing at all."""
    site, phones, told = any_site, Phones(), Told(any_site)
    here, later = users_of(0, 2)
    await _member(site, told, 0, here, NEW_YORK)
    await _member(site, told, 0, later, BOSTON)
    first = _alert(site, "a1", NEW_YORK)
    async with site.notifier(phones, context=True) as running:
        await _post(site, first, first)
        await _expanded(site, running, 1)
        await _post(site, _alert(site, "a2", NEW_YORK, BOSTON, replaces=["a1"]), first)
        await _expanded(site, running, 2)
        await _post(
            site,
            _alert(site, "a4", NEW_YORK, BOSTON, replaces=["a3"]),
            _alert(site, "a5", BOSTON, replaces=["a3", "a2"]),
        )
        await _expanded(site, running, 4)
    (chains,) = await site.rows("SELECT count(DISTINCT chain_id) AS n, count(*) AS alerts FROM notifier.alert_chain")
    assert (chains["n"], chains["alerts"]) == (1, 5)
    pushes = [p.token for p in phones.pushes]
    assert pushes.count(f"t-{here}") >= 1
    by_chain = await site.rows("SELECT user_id, occurrence, count(*) AS n FROM notifier.message GROUP BY 1, 2")
    assert {r["n"] for r in by_chain} == {1}
    assert pushes[:2] == [f"t-{here}", f"t-{later}"]


async def test_chains_that_are_joined_are_one_chain(any_site: Site) -> None:
    """Two storms become one: who was told of the younger one is told no more than who was told of the older one. That
    holds for every later alert of theirs, too."""
    site, phones, told = any_site, Phones(), Told(any_site)
    west, east, new = users_of(0, 3)
    await _member(site, told, 0, west, CHICAGO)
    await _member(site, told, 0, east, NEW_YORK)
    await _member(site, told, 0, new, BOSTON)
    earlier = iso(site.clock.now_ms() - 2 * HOUR)
    async with site.notifier(phones, context=True) as running:
        await _post(site, _alert(site, "a", CHICAGO, data={"sent_at": earlier}))
        await _post(site, _alert(site, "b", NEW_YORK))
        await _expanded(site, running, 2)
        first = {p.token: p.collapse_id for p in phones.pushes}
        assert first.keys() == {f"t-{west}", f"t-{east}"} and len(set(first.values())) == 2
        await _post(site, _alert(site, "c", CHICAGO, NEW_YORK, BOSTON, replaces=["a", "b"]))
        await _expanded(site, running, 3)
        await _post(site, _alert(site, "d", CHICAGO, NEW_YORK, BOSTON, replaces=["b"]))
        await _expanded(site, running, 4)
        assert [p.token for p in phones.pushes[2:]] == [f"t-{new}"]
        assert phones.pushes[2].collapse_id == first[f"t-{west}"]
        assert await site.pool.fetchval("SELECT count(*) FROM notifier.message") == 3
        words = {"headline": "newer"}
        await _post(site, _alert(site, "e", CHICAGO, NEW_YORK, BOSTON, replaces=["c", "d"], data=words))
        await _expanded(site, running, 5)
    # each in the place of what they have on the phone
    assert {p.token: (p.action, p.collapse_id) for p in phones.pushes[3:]} == {
        f"t-{west}": ("replace", first[f"t-{west}"]),
        f"t-{east}": ("replace", first[f"t-{east}"]),
        f"t-{new}": ("replace", first[f"t-{west}"]),
    }
    for table in ("alert_chain", "context_event"):
        assert await site.rows(f"SELECT DISTINCT chain_id FROM notifier.{table}") == [{"chain_id": "a"}]


async def test_chains_are_joined_while_the_runs_of_both_are_under_way(site: Site, monkeypatch: Any) -> None:
    """All three runs meet each user in the same moment, whatever page they have come to; each user is told once. The
    owner dies in the middle of it, and the next one goes on."""
    monkeypatch.setattr("services.notifier.runs._PAGE", 7)
    phones, told = Phones(), Told(site)
    users = users_of(0, 40)
    for number, user in enumerate(users):
        await _member(site, told, 0, user, (NEW_YORK, BOSTON, CHICAGO)[number % 3])
        if number % 2:
            await _member(site, told, 0, user, (NEW_YORK, BOSTON, CHICAGO)[(number + 1) % 3])
    await _post(site, _alert(site, "a", NEW_YORK), _alert(site, "b", BOSTON))
    await _post(site, _alert(site, "c", NEW_YORK, BOSTON, CHICAGO, replaces=["b", "a"]))
    async with site.notifier(phones, context=True) as running:
        await _stopped_midway(site, running)
    async with site.notifier(phones, context=True) as running:
        await _expanded(site, running, 3)
    assert sorted(p.token for p in phones.pushes) == sorted(f"t-{u}" for u in users)


async def test_updates_that_arrive_together_are_one_push(site: Site) -> None:
    phones, told = Phones(), Told(site)
    (user,) = users_of(0, 1)
    await _member(site, told, 0, user, NEW_YORK)
    await _post(site, *(_alert(site, f"u{n}", NEW_YORK, replaces=["root"]) for n in range(5)))
    async with site.notifier(phones, context=True) as running:
        await _expanded(site, running, 5)
    assert len(phones.pushes) == 1


async def test_alerts_that_concern_nobody_are_kept_with_their_verdict(site: Site) -> None:
    phones, told = Phones(), Told(site)
    (user,) = users_of(0, 1)
    await _member(site, told, 0, user, NEW_YORK)
    past = site.clock.now_ms() - 2 * HOUR
    await _post(
        site,
        _alert(site, "test", NEW_YORK, data={"status": "Test"}),
        _alert(site, "minor", NEW_YORK, severity="Minor"),
        _alert(site, "cancel", NEW_YORK, data={"message_type": "Cancel"}),
        _alert(site, "old", NEW_YORK, starts_at=iso(past), ends_at=iso(past + HOUR)),
        {**_alert(site, "sea"), "areas": [{"same": "073530"}]},
    )
    async with site.notifier(phones, context=True) as running:
        await _expanded(site, running, 5)
        await asyncio.sleep(0.1)
    assert await _verdicts(site) == {
        "test": "test_or_draft", "minor": "matched", "cancel": "cancel", "old": "expired", "sea": "marine",
    }  # fmt: skip
    assert phones.pushes == []
    assert await site.rows("SELECT * FROM notifier.run") == []


async def test_a_body_that_is_no_alert_does_not_stop_the_others(site: Site) -> None:
    phones, told = Phones(), Told(site)
    (user,) = users_of(0, 1)
    await _member(site, told, 0, user, NEW_YORK)
    await _post(site, {"id": "x", "kind": "forecast"}, _alert(site, "a", NEW_YORK))
    async with site.notifier(phones, context=True) as running:
        await _expanded(site, running, 1)
    assert len(phones.pushes) == 1


async def test_an_audience_is_planned_only_once_its_consents_are_known(site: Site) -> None:
    """The audience is read from the segmenter's tables, the consents from its feed: a user who opted out a moment ago
    is in the one already and not yet in the other."""
    phones, told = Phones(), Told(site)
    (user,) = users_of(0, 1)
    await _member(site, told, 0, user, NEW_YORK)
    withdrawal = told.row(user, "consent_set", {"push": False})
    await site.pool.execute("UPDATE spine.shard_owner SET next_seq = $1 WHERE service = 'segmenter'", told.seq + 1)
    await _post(site, _alert(site, "a1", NEW_YORK))
    async with site.notifier(phones, context=True) as running:

        async def judged() -> bool:
            return bool(await _verdicts(site))

        await until(judged)
        await asyncio.sleep(1.0)
        assert await site.rows("SELECT * FROM notifier.message") == []
        await site.feed(withdrawal, shard=0)
        await _expanded(site, running, 1)
    (message,) = await site.rows("SELECT state, reason FROM notifier.message")
    assert (message["state"], message["reason"], phones.pushes) == ("suppressed", "no_consent", [])


async def test_who_left_the_city_meanwhile_is_not_told(site: Site) -> None:
    phones, told = Phones(), Told(site)
    stays, left = users_of(0, 2)
    await _member(site, told, 0, stays, NEW_YORK)
    await _member(site, told, 0, left, NEW_YORK)
    await site.feed(told.row(left, "cohort_exited", {"relation": "added", "city_id": NEW_YORK}), shard=0)
    await _post(site, _alert(site, "a1", NEW_YORK))
    async with site.notifier(phones, context=True) as running:
        await site.applied(0, told.seq, "notifier")
        await _expanded(site, running, 1)
    assert [p.token for p in phones.pushes] == [f"t-{stays}"]


async def test_who_leaves_the_city_while_sending_is_stopped_is_not_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever withdraws their consent to location leaves every cohort; a push that was planned before is too late."""
    monkeypatch.setattr(dispatch, "_WAITED_SECONDS", 0.0)
    await site.pool.execute("UPDATE control.installation SET sending = false")
    phones, told = Phones(), Told(site)
    stays, leaves = users_of(0, 2)
    await _member(site, told, 0, stays, NEW_YORK)
    await _member(site, told, 0, leaves, NEW_YORK)
    await _post(site, _alert(site, "a1", NEW_YORK))
    async with site.notifier(phones, context=True) as running:

        async def planned() -> bool:
            running.check()
            return bool(await site.pool.fetchval("SELECT count(*) = 2 FROM notifier.message WHERE state = 'intent'"))

        await until(planned)
        await site.pool.execute("DELETE FROM segmenter.cohort_member WHERE user_id = $1", leaves)
        await site.pool.execute("UPDATE control.installation SET sending = true")
        await running.book.refresh()
        await _expanded(site, running, 1)
    assert [p.token for p in phones.pushes] == [f"t-{stays}"]
    reasons = await site.rows("SELECT user_id, reason FROM notifier.message WHERE state = 'suppressed'")
    assert reasons == [{"user_id": leaves, "reason": "left_audience"}]


async def test_a_run_over_many_pages_goes_on_after_a_restart(site: Site, monkeypatch: Any) -> None:
    """The cursor is written with the messages of its page: nobody twice, nobody forgotten."""
    monkeypatch.setattr("services.notifier.runs._PAGE", 7)
    phones, told = Phones(), Told(site)
    users = users_of(0, 40)
    for user in users:
        await _member(site, told, 0, user, NEW_YORK)
    await _post(site, _alert(site, "a1", NEW_YORK))
    async with site.notifier(phones, context=True) as running:
        await _stopped_midway(site, running)
    async with site.notifier(phones, context=True) as running:
        await _expanded(site, running, 1)
    assert sorted(p.token for p in phones.pushes) == sorted(f"t-{u}" for u in users)
    assert await site.pool.fetchval("SELECT sum(planned) FROM notifier.run_shard") == 40


async def test_a_record_that_makes_the_code_fail_is_set_aside(site: Site, monkeypatch: Any) -> None:
    """It would come again after every restart; the alerts behind it concern people who wait for them."""

    def failing(alert: Alert, *others: Any) -> Verdict:
        if alert.id == "poison":
            raise ZeroDivisionError
        return verdict(alert, *others)

    monkeypatch.setattr(handler, "verdict", failing)
    phones, told = Phones(), Told(site)
    (user,) = users_of(0, 1)
    await _member(site, told, 0, user, NEW_YORK)
    await _post(site, *(_alert(site, name, NEW_YORK) for name in ("a1", "poison", "a2")))
    async with site.notifier(phones, context=True) as running:
        await _expanded(site, running, 2)
    assert set(await _verdicts(site)) == {"a1", "a2"}
    assert len(phones.pushes) == 2
