"""What phones show of alerts at each moment, and how loudly, is what a plain model says."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from services.demo.sandbox_store import Mailbox
from services.demo.sandbox_wire import read_fcm
from services.demo.weather import feed
from services.notifier.context.intake import encode_context, split
from services.notifier.transports.fcm import message_body
from services.notifier.transports.push import Outcome, Push, Unavailable
from shared.contracts.events import FeedRow
from shared.contracts.identifiers import shard_of
from shared.contracts.rules import AlertTrigger
from shared.contracts.topics import Topic
from shared.kafka.sender import Record
from shared.process.clock import iso, parse_instant
from tests.integration.test_context import _alert, _expanded, _member, _post
from tests.integration.test_notifier import Told
from tests.support import phones_model
from tests.support.people import NEW_YORK, weather
from tests.support.phones_model import SEQUENCE, Pushed, User
from tests.support.spine import SHARDS, Notifying, Phones, Site, until, users_of

MINUTE = 60_000


class Sandbox(Phones):
    """Phones whose pushes go over the wire's own form into the sandbox's store, at product time."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self._site, self.mailbox = site, Mailbox()

    async def send(self, push: Push) -> Outcome:
        outcome = await super().send(push)
        now = self._site.clock.now_ms()
        told, _ = read_fcm(message_body(push, now))
        self.mailbox.add("fcm", told, now)
        return outcome

    def take(self) -> list[Pushed]:
        """What arrived since it was asked last."""
        arrived, self._seen = self.mailbox.since(getattr(self, "_seen", 0), None, 20_000)[0], self.mailbox.last
        return [Pushed(a.token.removeprefix("t-"), a.action, a.sound) for a in arrived]

    def screens(self, now: int) -> dict[str, set[tuple[str, str]]]:
        shown: dict[str, set[tuple[str, str]]] = {}
        for one in self.mailbox.screens.now(now):
            shown.setdefault(one.token.removeprefix("t-"), set()).add((one.title, one.body))
        return shown


class World:
    """Users in the segmenter's tables and in the feed, and the same ones in the model."""

    def __init__(self, site: Site) -> None:
        self.site, self.model = site, phones_model.Phones({})
        self._told = {shard: Told(site, shard) for shard in range(SHARDS)}
        self._alerts = 0

    async def add(self, name: str, user: User, phone: bool = True) -> None:
        self.model.users[name] = User(reachable=phone)
        rows = [self._told[shard_of(name, SHARDS)].device(name)] if phone else []
        ties = [
            ("default", user.default),
            *(("added", c) for c in user.added),
            *(("searched", c) for c in user.searched),
        ]
        rows += [await self._enter(name, relation, city) for relation, city in ties if city is not None]
        await self._feed(name, *rows)

    async def move(self, name: str, city: int) -> None:
        before = self.model.users[name].default
        rows = [await self._leave(name, before)] if before else []
        await self._feed(name, *rows, await self._enter(name, "default", city))

    async def opt_out(self, name: str) -> None:
        self.model.users[name].reachable = False
        await self._feed(name, self._told[shard_of(name, SHARDS)].row(name, "consent_set", {"push": False}))

    async def _enter(self, name: str, relation: str, city: int) -> FeedRow:
        user, shard = self.model.users[name], shard_of(name, SHARDS)
        row = self._told[shard].row(name, "cohort_entered", {"relation": relation, "city_id": city})
        if relation == "default":
            user.default = city
        else:
            getattr(user, relation).add(city)
        await self.site.pool.execute(
            "INSERT INTO segmenter.cohort_member VALUES ($1, $2, $3, $4, $5)", shard, city, relation, name, row.seq
        )
        return row

    async def _leave(self, name: str, city: int) -> FeedRow:
        shard = shard_of(name, SHARDS)
        await self.site.pool.execute(
            "DELETE FROM segmenter.cohort_member WHERE shard = $1 AND city_id = $2 AND user_id = $3", shard, city, name
        )
        return self._told[shard].row(name, "cohort_exited", {"relation": "default", "city_id": city})

    async def _feed(self, name: str, *rows: FeedRow) -> None:
        shard = shard_of(name, SHARDS)
        await self.site.pool.execute(
            "INSERT INTO spine.shard_owner (service, shard, next_seq) VALUES ('segmenter', $1, $2)"
            " ON CONFLICT (service, shard) DO UPDATE SET next_seq = excluded.next_seq",
            shard, self._told[shard].seq + 1,
        )  # fmt: skip
        await self.site.feed(*rows, shard=shard)

    async def post(self, features: list[dict[str, Any]], running: Notifying) -> None:
        """Post them in one batch, and wait until everything that follows has been sent."""
        records, unreadable = split({"type": "FeatureCollection", "features": features}, self.site.gazetteer, 0)
        assert not unreadable
        if records:
            await self.site.produce(Topic.CONTEXT, 0, *(Record(r.id.encode(), encode_context(r)) for r in records))
        self._alerts += len(records)
        await _expanded(self.site, running, self._alerts)


async def _moved(site: Site, to: int) -> None:
    """Time stands where it is moved to, and every part has seen it."""
    site.move_time(to)
    await asyncio.sleep(0.15)


async def test_phones_show_what_a_plain_model_says_at_each_moment(site: Site) -> None:
    """The authored sequence: watch, warning, smaller, longer, joined with another storm, in parts, cancelled, over."""
    began = site.clock.now_ms()
    site.move_time(began)
    world, phones = World(site), Sandbox(site)
    for name, told in SEQUENCE["users"].items():
        added, searched = ({phones_model.city(c) for c in told.get(k, ())} for k in ("added", "searched"))
        home = phones_model.city(told["default"]) if "default" in told else None
        await world.add(name, User(home, added, searched), told.get("phone", True))
    sent: dict[str, str] = {}
    async with site.notifier(phones, context=True) as running:
        for step in SEQUENCE["steps"]:
            await _moved(site, began + step["minute"] * MINUTE + MINUTE // 2)
            for change in step.get("changes", ()):
                if "push" in change:
                    await world.opt_out(change["user"])
                else:
                    await world.move(change["user"], phones_model.city(change["default"]))
            features = phones_model.features_of(step, began, sent)
            expected = world.model.take(features, site.clock.now_ms())
            await world.post(features, running)
            arrived = phones.take()
            assert sorted(arrived) == sorted(expected), step["says"]
            now = site.clock.now_ms()
            assert phones.screens(now) == world.model.screens(now), step["says"]
            noticed = {
                "aloud": sorted(one.user for one in arrived if one.sound),
                "silently": sorted(one.user for one in arrived if not one.sound and one.action == "replace"),
                "away": sorted(one.user for one in arrived if one.action == "retract"),
            }
            assert noticed == {how: sorted(step.get(how, ())) for how in noticed}, step["says"]
    assert await site.pool.fetchval("SELECT count(*) FROM notifier.message WHERE reason = 'no_device'") == 1, (
        "said once"
    )


async def test_a_real_feed_in_the_order_in_which_it_was_sent(site: Site) -> None:
    """A national feed of 529 alerts, 151 of them updates, posted part after part as the service sent them; then what the
    next hours might bring: some go on in other words, some grow, some shrink, some are taken back."""
    recorded = feed(site.clock.now_ms())["features"]
    recorded.sort(key=lambda feature: feature["properties"]["sent"])
    assert sum(bool(f["properties"]["references"]) for f in recorded) == 151
    site.move_time(_sent(recorded[0]))
    world, phones = World(site), Sandbox(site)
    severe = [f for f in recorded if f["properties"]["severity"] in ("Severe", "Extreme")]
    cities = sorted({city for f in severe for city in phones_model.alert_of(f).cities})
    for number in range(40):
        near, far = cities[number * 37 % len(cities)], cities[number * 61 % len(cities)]
        await world.add(f"u{number}", User(near, {far}, set()))
    parts = [recorded[: len(recorded) // 2], recorded[len(recorded) // 2 :]]
    last = _sent(recorded[-1])
    parts += [list(_next_hour(severe, n, last + n * 20 * MINUTE)) for n in (1, 2)]
    seen: Counter[tuple[str, bool]] = Counter()
    async with site.notifier(phones, context=True) as running:
        for part in parts:
            await _moved(site, max(_sent(feature) for feature in part) + MINUTE)
            expected = world.model.take(part, site.clock.now_ms())
            await world.post(part, running)
            assert sorted(phones.take()) == sorted(expected)
            now = site.clock.now_ms()
            assert phones.screens(now) == world.model.screens(now)
            seen += Counter((one.action, one.sound) for one in expected)
    assert set(seen) >= {("show", True), ("replace", True), ("replace", False), ("retract", False)}, seen


def _sent(feature: dict[str, Any]) -> int:
    return parse_instant(feature["properties"]["sent"])


def _next_hour(severe: list[dict[str, Any]], round_: int, at: int) -> Iterator[dict[str, Any]]:
    """Updates of recorded alerts, each in one of five ways by its number; they refer to the last of its kind."""
    for number, before in enumerate(severe):
        name = before["properties"]["id"]
        last = name if round_ == 1 else f"{name}.{round_ - 1}"
        properties = {
            **before["properties"],
            "id": f"{name}.{round_}",
            "messageType": "Update",
            "sent": iso(at),
            "references": [{"identifier": last, "sent": before["properties"]["sent"] if last == name else iso(at)}],
        }
        match (number + round_) % 5:
            case 0:
                properties["headline"] = f"Still: {properties['headline']}"
            case 1:
                properties |= {"severity": "Extreme", "event": properties["event"].replace("Watch", "Warning")}
            case 2:
                properties["messageType"] = "Cancel"
            case 3:
                codes = properties["geocode"]["SAME"]
                properties["geocode"] = {**properties["geocode"], "SAME": codes[: len(codes) // 2 + 1]}
            case _:
                properties["severity"] = "Moderate"
        yield {**before, "geometry": None, "properties": properties}


async def _open_messages(site: Site, running: Notifying, count: int) -> None:
    async def planned() -> bool:
        running.check()
        return bool(await site.pool.fetchval("SELECT count(*) FROM notifier.message") == count)

    await until(planned)


async def test_what_has_not_gone_out_when_a_newer_alert_comes_never_does(site: Site) -> None:
    """Sending is stopped for a while: then one push goes out, in the newest words, and as loud as the first would be."""
    phones, told = Phones(), Told(site)
    (user,) = users_of(0, 1)
    await _member(site, told, 0, user, NEW_YORK)
    await site.pool.execute("UPDATE control.installation SET sending = false")
    async with site.notifier(phones, context=True) as running:
        await _post(site, _alert(site, "a1", NEW_YORK))
        await _open_messages(site, running, 1)
        await _post(site, _alert(site, "a2", NEW_YORK, replaces=["a1"], data={"headline": "newer"}))
        await _open_messages(site, running, 2)
        await site.pool.execute("UPDATE control.installation SET sending = true")
        await running.book.refresh()
        await _expanded(site, running, 2)
    (push,) = phones.pushes
    assert (push.body, push.sound, push.action) == ("newer", True, "replace")
    rows = await site.rows("SELECT occurrence, state, reason FROM notifier.message ORDER BY occurrence")
    assert [tuple(row.values()) for row in rows] == [
        ("a1#a1", "suppressed", "superseded"),
        ("a1#a2", "sent", ""),
    ]
    explain = await site.pool.fetchval("SELECT explain FROM notifier.message WHERE state = 'sent'")
    assert json.loads(explain)[0] == {
        "gate": "chain", "passed": True, "values": {"reason": "update", "action": "replace", "sound": False},
    }  # fmt: skip
    assert await site.pool.fetchval("SELECT count(*) FROM notifier.outcome WHERE outcome = 'suppressed'") == 1


async def test_what_is_taken_away_is_where_it_was_sent_in_the_end(site: Site) -> None:
    """A show that waited goes to the newest phone, perhaps when the plan of what follows has read the row already."""
    phones, told = Phones(), Told(site)
    (user,) = users_of(0, 1)
    await _member(site, told, 0, user, NEW_YORK)
    async with site.notifier(phones, context=True) as running:
        await _post(site, _alert(site, "a1", NEW_YORK))
        await _expanded(site, running, 1)
        await site.feed(told.row(user, "device_set", {"device": {"id": "b", "type": "ios", "token": "t-b"}}), shard=0)
        await site.feed(told.row(user, "device_set", {"device": {"id": "c", "type": "ios", "token": "t-c"}}), shard=0)
        await site.applied(0, told.seq, "notifier")
        await site.pool.execute("UPDATE control.installation SET sending = false")
        await running.book.refresh()
        await _post(site, _alert(site, "a2", NEW_YORK, replaces=["a1"], data={"message_type": "Cancel"}))
        await _open_messages(site, running, 2)
        await site.pool.execute("UPDATE notifier.message SET device_id = 'b', token = 't-b' WHERE action = 'show'")
        await site.pool.execute("UPDATE control.installation SET sending = true")
        await running.book.refresh()
        await _expanded(site, running, 2)
    assert [(p.token, p.action) for p in phones.pushes] == [(f"t-{user}", "show"), ("t-b", "retract")]
    where = "SELECT device_id, token FROM notifier.message WHERE action = 'retract'"
    assert [tuple(row.values()) for row in await site.rows(where)] == [("b", "t-b")]


async def test_an_update_waits_for_what_is_on_the_wire_and_takes_its_place_if_that_fails(site: Site) -> None:
    """A provider takes calls in any order: an older text must not come behind a newer one, and the sound not get lost."""
    phones, told = Phones(), Told(site)
    (user,) = users_of(0, 1)
    await _member(site, told, 0, user, NEW_YORK)
    phones.hold, phones.answers = asyncio.Event(), {f"t-{user}": [Unavailable("down")]}
    async with site.notifier(phones, context=True) as running:
        await _post(site, _alert(site, "a1", NEW_YORK))

        async def on_the_wire() -> bool:
            running.check()
            return len(phones.pushes) == 1

        await until(on_the_wire)
        await _post(site, _alert(site, "a2", NEW_YORK, replaces=["a1"], data={"headline": "newer"}))
        await _open_messages(site, running, 2)
        await asyncio.sleep(0.2)
        assert len(phones.pushes) == 1, "the first one has no answer yet"
        phones.hold.set()
        await _expanded(site, running, 2)
    assert [(p.body, p.sound) for p in phones.pushes] == [("Tornado Warning", True), ("newer", True)]
    rows = await site.rows("SELECT occurrence, reason, sound FROM notifier.message ORDER BY occurrence")
    assert [tuple(row.values()) for row in rows] == [("a1#a1", "superseded", True), ("a1#a2", "", True)]


async def test_what_is_on_a_phone_is_changed_there_and_what_comes_back_goes_to_the_newest(site: Site) -> None:
    phones, told = Phones(), Told(site)
    (user,) = users_of(0, 1)
    await _member(site, told, 0, user, NEW_YORK)

    async def then(count: int, device: str, name: str, before: str = "", **data: str) -> None:
        """The user takes up another phone, and the chain goes on."""
        if device:
            phone = {"id": device, "type": "ios", "token": f"t-{device}"}
            await site.feed(told.row(user, "device_set", {"device": phone}), shard=0)
            await site.applied(0, told.seq, "notifier")
        await _post(site, _alert(site, name, NEW_YORK, replaces=[before] if before else [], data=data))
        await _expanded(site, running, count)

    async with site.notifier(phones, context=True) as running:
        await then(1, "", "a1")
        await then(2, "second", "a2", "a1", headline="newer")
        await then(3, "", "a3", "a2", message_type="Cancel")
        await then(4, "", "a4", "a3")
        await then(5, "third", "a5", "a4", headline="newest")
    assert [(p.token, p.action) for p in phones.pushes] == [
        (f"t-{user}", "show"),
        (f"t-{user}", "replace"),
        (f"t-{user}", "retract"),
        ("t-second", "show"),
        ("t-second", "replace"),
    ]


async def test_searched_cities_count_where_a_campaign_asks_for_them(site: Site) -> None:
    campaign = next(c for c in weather().campaigns if c.id == "severe_alert")
    assert isinstance(campaign.trigger, AlertTrigger)
    trigger = replace(campaign.trigger, relations=["default", "searched"])
    await site.install(replace(weather(), campaigns=[replace(campaign, trigger=trigger)]))
    phones, told = Phones(), Told(site)
    searcher, adder = users_of(0, 2)
    await _member(site, told, 0, searcher, NEW_YORK, "searched")
    await _member(site, told, 0, adder, NEW_YORK)
    async with site.notifier(phones, context=True) as running:
        await _post(site, _alert(site, "a1", NEW_YORK))
        await _expanded(site, running, 1)
        await _post(site, _alert(site, "a2", NEW_YORK, replaces=["a1"], data={"message_type": "Cancel"}))
        await _expanded(site, running, 2)
    assert [(p.token, p.action) for p in phones.pushes] == [(f"t-{searcher}", "show"), (f"t-{searcher}", "retract")]
