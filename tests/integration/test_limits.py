"""Caps, gaps, repeats, quiet hours and sunset, as they hold over batches, restarts and what is only on its way."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from services.notifier import dispatch, queries
from shared.contracts.rules import AlertTrigger, Campaign, Cap, Limits, QuietHours, Rules, StageTrigger, Template
from shared.process.clock import iso
from tests.integration.test_context import _alert, _expanded, _member, _post
from tests.integration.test_notifier import Told, _messages, _outcomes, _quietly, _settled
from tests.support.people import CHICAGO, NEW_YORK, weather
from tests.support.spine import SHARDS, Notifying, Phones, Site, until, users_of

ZONE = "America/New_York"
NIGHT = QuietHours("22:00", "07:00", ZONE)


def _rules(limits: Limits, *more: Campaign, **how: Any) -> Rules:
    """The one campaign `welcome` under these limits, and more."""
    how = {"freshness_seconds": 86_400} | how
    campaign = Campaign("welcome", "Welcome", StageTrigger(["acquire"]), {"en": Template("Hello", "There")}, **how)
    return msgspec.structs.replace(weather(), campaigns=[campaign, *more], limits=limits)


def _at(hour: int, minute: int = 0, day: int = 10) -> int:
    """An instant of a day in June 2026, by the clock in New York."""
    return round(datetime(2026, 6, day, hour, minute, tzinfo=ZoneInfo(ZONE)).timestamp() * 1000)


async def _later(site: Site, to_ms: int) -> None:
    """Move time, and wait until the clock has noticed."""
    site.move_time(to_ms)
    await asyncio.sleep(0.15)


async def _judged(site: Site, running: Notifying) -> Counter[tuple[str, str]]:
    """Settle all there is, and count by state and reason."""
    found = await _settled(site, running, 1)
    return Counter((m["state"], m["reason"]) for m in found)


async def test_a_cap_holds_within_a_batch_over_restarts_and_when_the_feed_is_read_again(any_site: Site) -> None:
    """What is suppressed uses nothing up; what was sent does, in whichever batch and process it was."""
    site, phones = any_site, Phones()
    await site.install(_rules(Limits([Cap(2, hours=24)])))
    told = Told(site)
    one, other = users_of(0, 2)
    now = site.clock.now_ms()
    rows = [
        told.device(one),
        told.device(other),
        *(told.acquired(one, now - n) for n in range(4)),
        told.acquired(other),
    ]
    await site.feed(*rows, shard=0)
    async with site.notifier(phones) as running:
        await site.applied(0, told.seq, "notifier")
        assert await _judged(site, running) == {("sent", ""): 3, ("suppressed", "cap"): 2}
    await site.pool.execute("UPDATE spine.shard_position SET next_offset = 0, last_offset = -1, last_src = -1")
    await site.feed(told.acquired(one, now - 9), told.acquired(other, now - 9), told.acquired(other, now - 8), shard=0)
    async with site.notifier(phones) as running:
        await site.applied(0, told.seq, "notifier")
        assert await _judged(site, running) == {("sent", ""): 4, ("suppressed", "cap"): 4}
    assert Counter(p.token for p in phones.pushes) == {f"t-{one}": 2, f"t-{other}": 2}


async def test_what_is_on_its_way_uses_a_cap_up_and_what_was_not_sent_after_all_does_not(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_WAITED_SECONDS", 0.0)
    await site.install(_rules(Limits([Cap(1, hours=24)])))
    told, phones = Told(site), Phones()
    (user,) = users_of(0, 1)
    now = site.clock.now_ms()
    await site.feed(told.device(user), told.acquired(user, now - 2), shard=0)
    async with site.notifier(phones, dispatch=False):
        await site.applied(0, told.seq, "notifier")
    await site.feed(told.acquired(user, now - 1), told.row(user, "consent_set", {"push": False}), shard=0)
    async with site.notifier(phones, dispatch=False):
        await site.applied(0, told.seq, "notifier")
    assert Counter(m["reason"] for m in await _messages(site)) == {"": 1, "cap": 1}
    async with site.notifier(phones) as running:  # the one that waited is refused: its user has opted out
        assert await _judged(site, running) == {("suppressed", "cap"): 1, ("suppressed", "no_consent"): 1}
        await site.feed(told.row(user, "consent_set", {"push": True}), told.acquired(user, now), shard=0)
        await site.applied(0, told.seq, "notifier")
        assert (await _judged(site, running))["sent", ""] == 1
    assert len(phones.pushes) == 1


async def test_quiet_hours_hold_a_message_and_it_is_judged_again_when_they_are_over(site: Site) -> None:
    """Whoever opted out meanwhile does not get it; the others get it once, also if the process dies in between."""
    site.move_time(_at(23))
    await site.install(_rules(Limits(quiet_hours=NIGHT)))
    told, phones = Told(site), Phones()
    still, out, elsewhere = users_of(0, 3)
    rows = [row for u in (still, out, elsewhere) for row in (told.device(u), told.acquired(u))]
    rows.insert(5, told.row(elsewhere, "profile_set", {"timezone": "Asia/Tokyo"}))
    for number, row in enumerate(rows, 1):
        rows[number - 1] = msgspec.structs.replace(row, seq=number, prev_seq=number - 1)
    await site.feed(*rows, shard=0)
    async with site.notifier(phones) as running:
        await site.applied(0, 7, "notifier")

        async def sent() -> bool:
            return [p.token for p in phones.pushes] == [f"t-{elsewhere}"]  # it is noon in Tokyo

        await until(sent)
        held = {m["user_id"]: m for m in await _messages(site) if m["state"] == "held"}
        assert {u: m["release_at"] for u, m in held.items()} == dict.fromkeys((still, out), _at(7, day=11))
        await site.feed(told.row(out, "consent_set", {"push": False}), shard=0)
        await site.applied(0, told.seq, "notifier")
        await _later(site, _at(6, 59, day=11))
        await asyncio.sleep(0.7)
        assert {m["state"] for m in await _messages(site) if m["user_id"] in held} == {"held"}
        await _quietly(running)
    await _later(site, _at(7, 1, day=11))
    for _ in range(2):
        async with site.notifier(phones) as running:

            async def released() -> bool:
                running.check()
                return not {m["state"] for m in await _messages(site)} & {"held", "intent", "attempted"}

            await until(released)
    found = {m["user_id"]: m for m in await _messages(site)}
    assert (found[still]["state"], found[out]["reason"]) == ("sent", "no_consent")
    assert found[still]["release_at"] == _at(7, day=11) <= found[still]["planned_at"]
    assert [p.token for p in phones.pushes] == [f"t-{elsewhere}", f"t-{still}"]
    assert len(await _outcomes(site)) == 3
    (shown,) = await queries.messages(site.pool, SHARDS, still, "", "", "", 10)
    assert [g["gate"] for g in shown["gates"]][-1] == "quiet_hours"
    assert shown["gates"][-1]["values"]["zone"] == ZONE


async def test_a_message_that_runs_into_quiet_hours_waits_for_their_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned in time, but the sending was stopped: nothing goes out at night because the way was long."""
    monkeypatch.setattr(dispatch, "_QUIET_SECONDS", 0.05)
    site.move_time(_at(21, 59))
    await site.install(_rules(Limits(quiet_hours=NIGHT)))
    told, phones = Told(site), Phones()
    (user,) = users_of(0, 1)
    await site.feed(told.device(user), told.acquired(user), shard=0)
    async with site.notifier(phones, dispatch=False):
        await site.applied(0, told.seq, "notifier")
    await _later(site, _at(22, 1))
    async with site.notifier(phones) as running:
        await asyncio.sleep(0.5)
        assert ([m["state"] for m in await _messages(site)], phones.pushes) == (["intent"], [])
        site.move_time(_at(7, day=11))
        assert await _judged(site, running) == {("sent", ""): 1}


async def test_gap_repeat_and_sunset_stop_what_they_should_and_a_tap_begins_anew(site: Site) -> None:
    site.move_time(_at(10))
    offer: dict[str, Any] = {"offer": "free-shipping", "no_repeat_days": 30}
    texts = {"en": Template("Look", "Free shipping")}
    second = Campaign("second", "Second", StageTrigger(["convert"]), texts, freshness_seconds=86_400, **offer)
    await site.install(_rules(Limits(gap_minutes=60, sunset_pushes=2), second, **offer))
    told, phones = Told(site), Phones()
    near, same = users_of(0, 2)
    await site.feed(
        told.device(near), told.acquired(near, _at(9, 1)), told.acquired(near, _at(9, 2)),
        told.device(same), told.acquired(same, _at(9, 1)), shard=0,
    )  # fmt: skip
    async with site.notifier(phones) as running:
        await site.applied(0, told.seq, "notifier")
        assert await _judged(site, running) == {("sent", ""): 2, ("suppressed", "gap"): 1}
        await _later(site, _at(12))
        await site.feed(told.row(same, "stage_changed", {"from": "acquire", "to": "convert"}), shard=0)
        await site.applied(0, told.seq, "notifier")
        assert (await _judged(site, running))["suppressed", "repeat"] == 1
        await site.install(_rules(Limits(sunset_pushes=2)))
        await running.book.refresh()
        await site.feed(told.acquired(near, _at(11)), told.acquired(near, _at(11, 1)), shard=0)
        await site.applied(0, told.seq, "notifier")
        assert (await _judged(site, running))["suppressed", "sunset"] == 1
        newest = max((m for m in await _messages(site) if m["state"] == "sent"), key=lambda m: m["attempted_at"])
        tap = told.row(near, "opened", {"message_id": newest["message_id"]})
        await site.feed(tap, told.acquired(near, _at(11, 2)), shard=0)
        await site.applied(0, told.seq, "notifier")
        found = await _judged(site, running)
    assert (found["sent", ""], found["suppressed", "sunset"]) == (4, 1)


async def test_safety_passes_every_limit_and_uses_none_up(site: Site) -> None:
    site.move_time(_at(23))
    limits = Limits([Cap(1, hours=24)], 600, QuietHours("23:30", "07:00", ZONE), 1)
    alarm = Campaign("alarm", "Alarm", StageTrigger(["acquire"]), {"en": Template("Run", "!")}, safety=True)
    await site.install(_rules(limits, alarm))
    told, phones = Told(site), Phones()
    (user,) = users_of(0, 1)
    await site.feed(told.device(user), *(told.acquired(user, _at(23) - n) for n in range(3)), shard=0)
    async with site.notifier(phones) as running:
        await site.applied(0, told.seq, "notifier")
        assert await _judged(site, running) == {("sent", ""): 4, ("suppressed", "cap"): 2}
    assert Counter(p.data["campaign"] for p in phones.pushes) == {"alarm": 3, "welcome": 1}


async def test_a_held_alert_is_dropped_where_its_user_has_left_the_city(site: Site) -> None:
    """A forecast that is no safety matter waits for the morning, and is then for those who still live there."""
    site.move_time(_at(23))
    advisory = Campaign(
        "advisory", "Advisory", AlertTrigger(["Moderate"]), {"en": Template("{{ alert.event }}", "{{ city.name }}")},
        freshness_seconds=86_400,
    )  # fmt: skip
    await site.install(_rules(Limits(quiet_hours=NIGHT), advisory))
    told, phones = Told(site), Phones()
    stays, left = users_of(0, 2)
    for user in (stays, left):
        await _member(site, told, 0, user, NEW_YORK)
    alert = _alert(site, "a1", NEW_YORK, severity="Moderate", ends_at=iso(_at(12, day=11)))
    await _post(site, alert)
    async with site.notifier(phones, context=True) as running:
        await _expanded(site, running, 1)
        assert [m["state"] for m in await _messages(site)] == ["held", "held"]
        await site.pool.execute("DELETE FROM segmenter.cohort_member WHERE user_id = $1", left)
        await _later(site, _at(7, day=11))

        async def released() -> bool:
            running.check()
            return not {m["state"] for m in await _messages(site)} & {"held", "intent", "attempted"}

        await until(released)
    found = {m["user_id"]: (m["state"], m["reason"]) for m in await _messages(site)}
    assert found == {stays: ("sent", ""), left: ("suppressed", "left_audience")}
    assert [(p.title, p.body) for p in phones.pushes] == [("Tornado Warning", "New York City")]


async def _released(site: Site, running: Notifying) -> dict[str, tuple[str, str]]:
    """State and reason by occurrence, once nothing is held and none is open."""

    async def released() -> bool:
        running.check()
        return not {m["state"] for m in await _messages(site)} & {"held", "intent", "attempted"}

    await until(released)
    return {m["occurrence"]: (m["state"], m["reason"]) for m in await _messages(site)}


async def test_a_held_alert_that_was_cancelled_meanwhile_is_not_told(site: Site) -> None:
    """Whoever sleeps through an advisory does not wake up to it; one that was replaced is told as it stands then."""
    site.move_time(_at(23))
    advisory = Campaign(
        "advisory", "Advisory", AlertTrigger(["Moderate"]), {"en": Template("{{ alert.event }}", "{{ alert.headline | default: '' }}")},
        freshness_seconds=86_400,
    )  # fmt: skip
    await site.install(_rules(Limits(quiet_hours=NIGHT), advisory))
    told, phones = Told(site), Phones()
    east, west = users_of(0, 2)
    await _member(site, told, 0, east, NEW_YORK)
    await _member(site, told, 0, west, CHICAGO)
    more = {"severity": "Moderate", "ends_at": iso(_at(12, day=11))}
    async with site.notifier(phones, context=True) as running:
        await _post(site, _alert(site, "a", NEW_YORK, **more), _alert(site, "b", CHICAGO, **more))
        await _expanded(site, running, 2)
        assert [m["state"] for m in await _messages(site)] == ["held", "held"]
        cancel = _alert(site, "a2", NEW_YORK, replaces=["a"], data={"message_type": "Cancel"}, **more)
        update = _alert(site, "b2", CHICAGO, replaces=["b"], data={"headline": "newer"}, **more)
        await _post(site, cancel, update)
        await _expanded(site, running, 4)
        await _later(site, _at(7, day=11))
        found = await _released(site, running)
    gone = ("suppressed", "superseded")
    assert found == {"a#a": gone, "b#b": gone, "b#b2": ("sent", "")}
    assert [(p.token, p.body) for p in phones.pushes] == [(f"t-{west}", "newer")]


async def test_while_a_graver_word_is_held_the_phone_shows_the_one_before_it(site: Site) -> None:
    """If that is cancelled it is taken away in the night, silently; else it is replaced in the morning, where it is."""
    site.move_time(_at(21))
    advisory = Campaign(
        "advisory", "Advisory", AlertTrigger(["Moderate"]), {"en": Template("{{ alert.event }}", "{{ alert.severity }}")},
        freshness_seconds=86_400,
    )  # fmt: skip
    await site.install(_rules(Limits(quiet_hours=NIGHT), advisory))
    told, phones = Told(site), Phones()
    east, west = users_of(0, 2)
    await _member(site, told, 0, east, NEW_YORK)
    await _member(site, told, 0, west, CHICAGO)
    ends = {"ends_at": iso(_at(12, day=11))}
    async with site.notifier(phones, context=True) as running:
        for name, city in (("a", NEW_YORK), ("b", CHICAGO)):
            await _post(site, _alert(site, name, city, severity="Moderate", **ends))
        await _expanded(site, running, 2)
        await _later(site, _at(23))
        for name, city in (("a", NEW_YORK), ("b", CHICAGO)):
            await _post(site, _alert(site, f"{name}2", city, replaces=[name], **ends))
        await _expanded(site, running, 4)
        assert Counter(m["state"] for m in await _messages(site)) == {"sent": 2, "held": 2}
        phone = {"device": {"id": "second", "type": "ios", "token": "t-second"}}
        await site.feed(told.row(west, "device_set", phone), shard=0)
        await site.applied(0, told.seq, "notifier")
        cancel = _alert(site, "a3", NEW_YORK, replaces=["a2"], data={"message_type": "Cancel"}, **ends)
        await _post(site, cancel)
        await _expanded(site, running, 5)
        assert [(p.token, p.action) for p in phones.pushes[2:]] == [(f"t-{east}", "retract")]
        await _later(site, _at(7, day=11))
        found = await _released(site, running)
    assert found == {
        "a#a": ("sent", ""), "a#a2": ("suppressed", "superseded"), "a#a3": ("sent", ""),
        "b#b": ("sent", ""), "b#b2": ("sent", ""),
    }  # fmt: skip
    (last,) = phones.pushes[3:]
    assert (last.token, last.action, last.sound, last.body) == (f"t-{west}", "replace", True, "Severe")
