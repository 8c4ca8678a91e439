"""What the notifier makes of the feed: one message per occurrence, kept before it is sent, with one outcome each."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import msgspec
import pytest

from services.notifier import dispatch
from services.notifier.domain.recipient import decode_recipient
from services.notifier.transports.push import Refused, Throttled, TokenDead, Unavailable, Unknown
from shared.contracts.events import FeedRow, FeedTime
from shared.contracts.rules import Campaign, Rules, StageTrigger, Template
from shared.contracts.topics import Topic
from shared.kafka import fenced_reader
from shared.process.metrics import GAPS, REPEATS
from tests.support.people import DAY, HOUR, weather
from tests.support.spine import Notifying, Phones, Site, counted, until, users_of


class Told:
    """Numbers a shard's feed rows as the segmenter does."""

    def __init__(self, site: Site, shard: int = 0) -> None:
        self.seq, self.gen, self._site, self._shard = 0, 1, site, shard

    def row(self, user: str, kind: str, payload: dict[str, Any], at: int | None = None, src: int = -1) -> FeedRow:
        self.seq += 1
        at = self._site.clock.now_ms() if at is None else at
        return FeedRow(self.gen, self.seq, self.seq - 1, user, kind, payload, at, at, ("event", "m"), src, 1)

    def device(self, user: str, token: str = "") -> FeedRow:
        return self.row(
            user, "device_set", {"device": {"id": f"d-{user}", "type": "ios", "token": token or f"t-{user}"}}
        )

    def acquired(self, user: str, at: int | None = None) -> FeedRow:
        return self.row(user, "stage_changed", {"from": "reach", "to": "acquire"}, at, src=self.seq)


def _welcome(**how: Any) -> Rules:
    """Rules with the one campaign `welcome`."""
    campaign = Campaign("welcome", "Welcome", StageTrigger(["acquire"]), {"en": Template("Hello", "There")}, **how)
    return msgspec.structs.replace(weather(), campaigns=[campaign])


async def _messages(site: Site) -> list[dict[str, Any]]:
    return await site.rows("SELECT * FROM notifier.message ORDER BY user_id")


async def _states(site: Site) -> dict[str, str]:
    return {m["user_id"]: m["state"] for m in await _messages(site)}


async def _on_the_wire(phones: Phones, count: int = 1) -> None:
    async def begun() -> bool:
        return len(phones.pushes) == count

    await until(begun)


async def _settled(site: Site, running: Notifying, count: int) -> list[dict[str, Any]]:
    """The messages, once there are `count` and none is open."""

    async def done() -> list[dict[str, Any]]:
        running.check()
        found = await _messages(site)
        return found if len(found) >= count and not {"intent", "attempted"} & {m["state"] for m in found} else []

    found: list[dict[str, Any]] = await until(done)
    return found


async def _outcomes(site: Site, shard: int = 0) -> list[tuple[str, str, str]]:
    """Outcomes as the public topic tells them, and that it agrees with the table."""
    rows = await site.rows(
        "SELECT seq, user_id, outcome, reason FROM notifier.outcome WHERE shard = $1 ORDER BY seq", shard
    )
    assert [r["seq"] for r in rows] == list(range(1, len(rows) + 1))

    async def published() -> bool:
        found = {json.loads(r.value)["seq"] for r in await site.records(Topic.OUTCOMES, shard)}
        return found == {r["seq"] for r in rows}

    await until(published)
    return [(r["user_id"], r["outcome"], r["reason"]) for r in rows]


async def _quietly(running: Notifying) -> None:
    """End a notifier as a crash would: what is on the wire is never answered."""
    for task in list(running.dispatcher._in_flight.values()):
        task.cancel()
    await running.stop()
    running.tasks.clear()


async def test_a_welcome_is_sent_once_though_the_feed_says_it_thrice(any_site: Site) -> None:
    """Repeated rows, a restart, and a position that was lost: the message's id is the same, and is there already."""
    site, told, phones = any_site, Told(any_site), Phones()
    (user,) = users_of(0, 1)
    rows = [told.device(user), told.acquired(user)]
    with counted(REPEATS, "notifier") as repeats:
        await site.feed(*rows, *rows, shard=0)
        async with site.notifier(phones) as running:
            (message,) = await _settled(site, running, 1)
            await site.applied(0, 2, "notifier")
        await site.pool.execute("UPDATE spine.shard_position SET next_offset = 0, last_offset = -1, last_src = -1")
        async with site.notifier(phones) as running:
            await site.applied(0, 2, "notifier")
            await asyncio.sleep(0.2)
            running.check()
    assert [p.token for p in phones.pushes] == [f"t-{user}"]
    assert (message["state"], message["cause_seq"], message["cause_src"]) == ("sent", 2, 1)
    assert await _outcomes(site) == [(user, "sent", "")]
    assert repeats[0] >= 2


async def test_rows_over_a_gap_wait_for_repair(site: Site) -> None:
    """The missing row may be the withdrawal of consent."""
    told, phones = Told(site), Phones()
    (user,) = users_of(0, 1)
    rows = [told.device(user), told.row(user, "consent_set", {"push": False}), told.acquired(user)]
    with counted(GAPS, "notifier") as gaps:
        await site.feed(rows[0], rows[2], shard=0)
        async with site.notifier(phones) as running:
            await site.applied(0, 1, "notifier")
            await asyncio.sleep(0.2)
            assert await _messages(site) == []
            await site.feed(*rows[1:], shard=0)
            (message,) = await _settled(site, running, 1)
    assert (message["state"], message["reason"]) == ("suppressed", "no_consent")
    assert gaps == [1]


async def test_a_new_generation_begins_anew(site: Site) -> None:
    """A restored segmenter numbers on beyond what it had published; its old rows are repeats."""
    told, phones = Told(site), Phones()
    one, two = users_of(0, 2)
    old = [told.device(one), told.acquired(one)]
    told.gen, told.seq = 2, 100
    await site.feed(*old, told.device(two), told.acquired(two), *old, shard=0)
    async with site.notifier(phones) as running:
        await site.applied(0, 102, "notifier")
        await _settled(site, running, 2)
    assert sorted(p.token for p in phones.pushes) == sorted([f"t-{one}", f"t-{two}"])


@pytest.mark.parametrize(("on_unknown", "state", "pushes"), [("give_up", "unknown", 1), ("retry", "sent", 2)])
async def test_an_attempt_without_an_outcome_ends_as_its_campaign_says(
    site: Site, on_unknown: Literal["give_up", "retry"], state: str, pushes: int
) -> None:
    """The process died with the push on the wire: nobody knows whether it is on the phone."""
    await site.install(_welcome(on_unknown=on_unknown))
    told, phones = Told(site), Phones()
    (user,) = users_of(0, 1)
    phones.hold = asyncio.Event()
    await site.feed(told.device(user), told.acquired(user), shard=0)
    async with site.notifier(phones) as running:
        await _on_the_wire(phones)
        assert await _states(site) == {user: "attempted"}  # noted before the wire
        await _quietly(running)
    phones.hold = None
    async with site.notifier(phones) as running:
        (message,) = await _settled(site, running, 1)
    assert (message["state"], len(phones.pushes)) == (state, pushes)
    assert len({(p.message_id, p.collapse_id) for p in phones.pushes}) == 1
    assert await _outcomes(site) == [(user, state, "no_answer_before_a_restart" if state == "unknown" else "")]


async def test_what_may_have_arrived_is_not_called_suppressed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt went unanswered, and consent was withdrawn before the next one: it is not made, but nobody knows
    whether the first one is on the phone."""
    monkeypatch.setattr(dispatch, "_WAITED_SECONDS", 0.0)
    await site.install(_welcome(on_unknown="retry"))
    told, phones = Told(site), Phones()
    (user,) = users_of(0, 1)
    phones.hold = asyncio.Event()
    await site.feed(told.device(user), told.acquired(user), shard=0)
    async with site.notifier(phones) as running:
        await _on_the_wire(phones)
        await site.feed(told.row(user, "consent_set", {"push": False}), shard=0)
        await site.applied(0, told.seq, "notifier")
        await _quietly(running)
    async with site.notifier(phones) as running:
        (message,) = await _settled(site, running, 1)
    assert (message["state"], message["reason"]) == ("unknown", "no_answer_before_a_restart")
    assert len(phones.pushes) == 1


async def test_an_orderly_end_writes_the_answers_that_came(site: Site) -> None:
    """Or every deployment would leave pushes whose outcome nobody knows, though the provider told it."""
    told, phones = Told(site), Phones()
    users = users_of(0, 5)
    phones.hold = asyncio.Event()
    await site.feed(*(row for u in users for row in (told.device(u), told.acquired(u))), shard=0)
    async with site.notifier(phones):
        await _on_the_wire(phones, 5)
        asyncio.get_running_loop().call_later(0.1, phones.hold.set)
    assert await _states(site) == dict.fromkeys(users, "sent")
    async with site.notifier(phones) as running:
        await until(lambda: _owned(running))
        assert [outcome for _, outcome, _ in await _outcomes(site)] == ["sent"] * 5
    assert len(phones.pushes) == 5


async def test_an_intent_that_was_never_attempted_is_sent_by_the_next_owner(site: Site) -> None:
    told, phones = Told(site), Phones()
    (user,) = users_of(0, 1)
    await site.feed(told.device(user), told.acquired(user), shard=0)
    async with site.notifier(phones, dispatch=False):
        await site.applied(0, 2, "notifier")
    assert await _states(site) == {user: "intent"}
    async with site.notifier(phones) as running:
        await _settled(site, running, 1)
    assert len(phones.pushes) == 1


async def test_those_held_out_are_recorded_as_exposed_and_not_sent(any_site: Site) -> None:
    """Without the record of who would have been sent, and when, no lift can ever be measured."""
    site, phones = any_site, Phones()
    await site.install(_welcome(holdout_percent=50.0))
    told, users = Told(site), users_of(0, 60)
    await site.feed(*(row for u in users for row in (told.device(u), told.acquired(u))), shard=0)
    async with site.notifier(phones) as running:
        found = await _settled(site, running, 60)
        outcomes = await _outcomes(site)
    variants = {(m["state"], m["variant"]) for m in found}
    assert variants == {("sent", "treated"), ("held_out", "holdout")}
    held = {m["user_id"] for m in found if m["state"] == "held_out"}
    assert 15 <= len(held) <= 45
    assert {p.token for p in phones.pushes} == {f"t-{u}" for u in users if u not in held}
    assert {u for u, outcome, _ in outcomes if outcome == "held_out"} == held
    assert len(outcomes) == 60
    exposure = json.loads(next(r for r in await site.records(Topic.OUTCOMES, 0) if b"held_out" in r.value).value)
    assert (exposure["variant"], exposure["campaign"]) == ("holdout", "welcome")


async def test_a_safety_campaign_holds_nobody_out(site: Site) -> None:
    await site.install(_welcome(holdout_percent=100.0, safety=True))
    told, phones = Told(site), Phones()
    (user,) = users_of(0, 1)
    await site.feed(told.device(user), told.acquired(user), shard=0)
    async with site.notifier(phones) as running:
        await _settled(site, running, 1)
    assert [p.high_priority for p in phones.pushes] == [True]


async def test_each_suppression_has_its_reason(site: Site) -> None:
    told, phones = Told(site), Phones()
    withdrawn, silent, late, gone, given_again = users_of(0, 5)
    now = site.clock.now_ms()
    await site.feed(
        told.device(withdrawn), told.row(withdrawn, "consent_set", {"push": False}), told.acquired(withdrawn),
        told.acquired(silent),
        told.device(late), told.acquired(late, now - 2 * HOUR),
        told.device(gone), told.row(gone, "device_removed", {"device_id": f"d-{gone}"}), told.acquired(gone),
        told.device(given_again), told.row(given_again, "consent_set", {"push": False}),
        told.row(given_again, "consent_set", {"push": True, "location": False}), told.acquired(given_again),
        shard=0,
    )  # fmt: skip
    async with site.notifier(phones) as running:
        found = await _settled(site, running, 5)
        outcomes = await _outcomes(site)
    assert {m["user_id"]: (m["state"], m["reason"]) for m in found} == {
        withdrawn: ("suppressed", "no_consent"), silent: ("suppressed", "no_device"), late: ("suppressed", "stale"),
        gone: ("suppressed", "no_device"), given_again: ("sent", ""),
    }  # fmt: skip
    assert [p.token for p in phones.pushes] == [f"t-{given_again}"]
    assert len(outcomes) == 5


async def test_whoever_opted_out_while_a_message_waited_does_not_get_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sending was stopped; when it goes on, what had to wait is judged again."""
    monkeypatch.setattr(dispatch, "_WAITED_SECONDS", 0.0)
    await site.pool.execute("UPDATE control.installation SET sending = false")
    told, phones = Told(site), Phones()
    out, still = users_of(0, 2)
    await site.feed(told.device(out), told.acquired(out), told.device(still), told.acquired(still), shard=0)
    async with site.notifier(phones) as running:
        await site.applied(0, 4, "notifier")
        await site.feed(told.row(out, "consent_set", {"push": False}), told.device(still, "newer-token"), shard=0)
        await site.applied(0, 6, "notifier")
        assert phones.pushes == []
        await site.pool.execute("UPDATE control.installation SET sending = true")
        await running.book.refresh()
        found = await _settled(site, running, 2)
        outcomes = await _outcomes(site)
    assert {m["user_id"]: (m["state"], m["reason"]) for m in found} == {
        out: ("suppressed", "no_consent"), still: ("sent", ""),
    }  # fmt: skip
    assert [p.token for p in phones.pushes] == ["newer-token"]
    assert [m["token"] for m in found if m["state"] == "sent"] == ["newer-token"], "kept is where it went"
    assert len(outcomes) == 2


async def test_a_message_that_outlived_itself_is_not_sent(site: Site) -> None:
    await site.install(_welcome(ttl_seconds=1))
    told, phones = Told(site), Phones()
    (user,) = users_of(0, 1)
    await site.feed(told.device(user), told.acquired(user), shard=0)
    async with site.notifier(phones, dispatch=False):
        await site.applied(0, 2, "notifier")
    await asyncio.sleep(1.1)
    async with site.notifier(phones) as running:
        (message,) = await _settled(site, running, 1)
    assert (message["state"], message["reason"], phones.pushes) == ("suppressed", "expired", [])


async def test_a_dead_token_is_removed_and_no_other(site: Site) -> None:
    told, phones = Told(site), Phones()
    (user,) = users_of(0, 1)
    phones.answers["dead"] = [TokenDead("unregistered")]
    await site.feed(told.device(user, "alive"), shard=0)
    tablet = {"device": {"id": "tablet", "type": "android", "token": "dead"}}
    await site.feed(told.row(user, "device_set", tablet), told.acquired(user), shard=0)
    async with site.notifier(phones) as running:
        (message,) = await _settled(site, running, 1)
        assert (message["state"], message["reason"]) == ("failed", "token_dead")

        async def removed() -> bool:
            known = decode_recipient(await site.pool.fetchval("SELECT body FROM notifier.recipient"))
            return [d.token for d in known.devices] == ["alive"]

        await until(removed)
        known = await running.notifier.recipient(0, user)
    assert known is not None
    assert [d.token for d in known.devices] == ["alive"]


async def _owned(running: Notifying) -> bool:
    return bool(running.reader.shards)


async def test_what_the_provider_says_decides_what_becomes_of_a_message(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what was certainly not taken goes again by itself."""
    monkeypatch.setattr(dispatch, "backoff_seconds", lambda *_: 0.01)
    told, phones = Told(site), Phones()
    users = users_of(0, 4)
    phones.answers = {
        f"t-{users[0]}": [Unavailable("refused"), Unavailable("refused", 0.01)],
        f"t-{users[1]}": [Throttled(0.05)],
        f"t-{users[2]}": [Unknown("reset")],
        f"t-{users[3]}": [Refused("bad payload")],
    }
    await site.feed(*(row for u in users for row in (told.device(u), told.acquired(u))), shard=0)
    async with site.notifier(phones) as running:
        found = await _settled(site, running, 4)
        outcomes = await _outcomes(site)
    assert {m["user_id"]: (m["state"], m["reason"], m["attempts"]) for m in found} == {
        users[0]: ("sent", "", 3), users[1]: ("sent", "", 2), users[2]: ("unknown", "reset", 1),
        users[3]: ("failed", "refused:bad payload", 1),
    }  # fmt: skip
    assert len(outcomes) == 4
    assert len(phones.pushes) == 7


async def test_a_provider_that_stays_away_is_given_up_after_a_number_of_attempts(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "backoff_seconds", lambda *_: 0.001)
    told, phones = Told(site), Phones()
    (user,) = users_of(0, 1)
    phones.answers = {f"t-{user}": [Unavailable("down")] * 100}
    await site.feed(told.device(user), told.acquired(user), shard=0)
    async with site.notifier(phones) as running:
        (message,) = await _settled(site, running, 1)
    assert (message["state"], message["reason"]) == ("failed", "too_many_attempts")
    assert len(phones.pushes) == dispatch._MOST_ATTEMPTS


async def test_the_first_tap_is_the_users_own_and_counts_once(site: Site) -> None:
    told, phones = Told(site), Phones()
    user, other = users_of(0, 2)
    await site.feed(told.device(user), told.acquired(user), shard=0)
    async with site.notifier(phones) as running:
        (message,) = await _settled(site, running, 1)
        at = site.clock.now_ms()
        taps = [(other, message["message_id"]), (user, "2601-unknown"), (user, "rubbish"), (user, message["message_id"]),
                (user, message["message_id"])]  # fmt: skip
        await site.feed(*(told.row(u, "opened", {"message_id": m}, at) for u, m in taps), shard=0)
        await site.applied(0, 7, "notifier")
        running.check()
        outcomes = await _outcomes(site)
    assert outcomes == [(user, "sent", ""), (user, "opened", "")]
    assert (await _messages(site))[0]["opened_at"] == at


async def test_a_notifier_that_lost_its_shards_while_sending_ends_each_message_once(site: Site) -> None:
    """Fenced in the middle of everything, again and again: each message goes out once and has one outcome."""
    told, phones = Told(site), Phones()
    users = users_of(0, 40)
    await site.feed(*(row for u in users for row in (told.device(u), told.acquired(u))), shard=0)
    async with site.notifier(phones) as running:
        for _ in range(6):
            await asyncio.sleep(0.02)
            await site.pool.execute("UPDATE spine.shard_owner SET epoch = epoch + 1 WHERE service = 'notifier'")
        found = await _settled(site, running, 40)
        outcomes = await _outcomes(site)
    assert {m["state"] for m in found} <= {"sent", "unknown"}
    assert len({p.message_id for p in phones.pushes}) == len(phones.pushes) <= 40
    assert sorted(u for u, _, _ in outcomes) == sorted(users)
    for user, outcome, _ in outcomes:
        if outcome == "sent":
            assert f"t-{user}" in {p.token for p in phones.pushes}


async def test_outcomes_that_were_never_published_follow_a_restart(site: Site) -> None:
    told, phones = Told(site), Phones()
    users = users_of(0, 5)
    await site.feed(*(row for u in users for row in (told.device(u), told.acquired(u))), shard=0)
    async with site.notifier(phones) as running:
        await _settled(site, running, 5)
        await _outcomes(site)
    await site.pool.execute("UPDATE spine.shard_owner SET relayed = 2 WHERE service = 'notifier' AND shard = 0")
    async with site.notifier(phones):

        async def again() -> bool:
            found = [json.loads(r.value)["seq"] for r in await site.records(Topic.OUTCOMES, 0)]
            return found == [1, 2, 3, 4, 5, 3, 4, 5]

        await until(again)


@pytest.mark.parametrize("where", ["in the fold", "while its recipient is loaded"])
async def test_a_row_that_breaks_the_code_is_set_aside_and_the_rest_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(fenced_reader, "backoff_seconds", lambda *_: 0.01)
    told, phones = Told(site), Phones()
    user, other = users_of(0, 2)
    if where == "in the fold":
        broken = told.row(other, "device_set", {"device": {"no": "such fields"}})
    else:
        broken = told.device("no\0text")
    await site.feed(told.device(user), broken, told.acquired(user), shard=0)
    async with site.notifier(phones) as running:
        (message,) = await _settled(site, running, 1)
        await site.applied(0, 3, "notifier")
    assert (message["user_id"], message["state"]) == (user, "sent")


async def test_time_alone_moves_the_position_and_nothing_else(site: Site) -> None:
    phones = Phones()
    await site.produce(Topic.FEED, 0, _time(1, 0), _time(1, 0))
    async with site.notifier(phones) as running:

        async def moved() -> bool:
            query = "SELECT next_offset FROM spine.shard_position WHERE service = 'notifier' AND shard = 0"
            return bool(await site.pool.fetchval(query) == 2)

        await until(moved)
        running.check()
        told = Told(site)
        (user,) = users_of(0, 1)
        await site.feed(told.device(user), told.acquired(user), shard=0)
        await _settled(site, running, 1)
    assert len(phones.pushes) == 1


def _time(gen: int, seq: int) -> Any:
    from shared.contracts.events import encode
    from shared.kafka.sender import Record

    return Record(b"", encode(FeedTime(gen, seq, DAY)))
