"""Campaigns that wait for an event or a segment, and then for more of it or for nothing: judged when the feed's time has
come, once, over batches, restarts and repeats. What came of each is told again by the oracle."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec

from services.local import trail
from services.notifier import queries
from services.notifier.domain.recipient import decode_recipient
from shared.contracts.events import Context, Device, Feed, FeedRow, FeedTime, TimeRecord, encode
from shared.contracts.rules import (
    Audience,
    Campaign,
    EventTrigger,
    Limits,
    QuietHours,
    Rules,
    SegmentExitTrigger,
    SegmentTrigger,
    Template,
    encode_rules,
)
from shared.contracts.topics import Topic
from shared.kafka.sender import Record
from shared.process.clock import iso
from tests.integration.test_limits import NIGHT, _at, _later
from tests.integration.test_notifier import Told, _messages, _outcomes, _quietly
from tests.support import oracle_messages
from tests.support.oracle_snapshot import Snapshot
from tests.support.oracle_topics import Seen
from tests.support.people import BOSTON, HOUR, NEW_YORK, event, weather
from tests.support.spine import SHARDS, Notifying, Phones, Site, until, users_of

MINUTE = 60_000
SEARCHED = Campaign(
    "searched", "Searched, not added", EventTrigger(["City Searched"], {}, 60, ["City Added"], ["city"]),
    {"en": Template("{{ city.name }}?", "{{ event.name }}")},
)  # fmt: skip
READ = Campaign("read", "Read", EventTrigger(["Screen Viewed"], {"name": ["guide"]}), {"en": Template("Hi", "There")})
KEEN = Campaign("keen", "Keen", SegmentTrigger(["newcomers"], 60), {"en": Template("Hi", "{{ segment.title }}")})
GONE = Campaign(
    "gone", "Gone", SegmentExitTrigger(["newcomers"]), {"en": Template("Bye", "{{ segment.title }}")},
    freshness_seconds=86_400,
)  # fmt: skip


def _rules(*campaigns: Campaign, quiet: QuietHours = QuietHours()) -> Rules:  # noqa: B008
    return msgspec.structs.replace(weather(), campaigns=list(campaigns), limits=Limits(quiet_hours=quiet))


class Telling(Told):
    """Feeds a shard as the segmenter does, times between the rows, and has the oracle look at what came of it."""

    def __init__(self, site: Site, *campaigns: Campaign, quiet: QuietHours = QuietHours()) -> None:  # noqa: B008
        super().__init__(site)
        self.rules, self.rows = _rules(*campaigns, quiet=quiet), list[FeedRow]()

    def row(self, *told: Any, **more: Any) -> FeedRow:
        self.rows.append(super().row(*told, **more))
        return self.rows[-1]

    def moment(
        self, user: str, what: str, ago: float, city: int | None = None, mode: str = "live", **told: Any
    ) -> FeedRow:
        """An event that occurred so many minutes ago."""
        payload = {"event": what, "mode": mode, "properties": told} | ({"city_id": city} if city else {})
        self.row(user, "moment", payload, self._site.clock.now_ms() - round(ago * MINUTE))
        self.rows[-1] = msgspec.structs.replace(self.rows[-1], cause=("event", f"m-{self.seq}"))
        return self.rows[-1]

    def entered(self, user: str, ago: float, what: str = "entered", segment: str = "newcomers") -> FeedRow:
        return self.row(user, f"segment_{what}", {"segment": segment}, self._site.clock.now_ms() - round(ago * MINUTE))

    def time(self, ago: float) -> FeedTime:
        return FeedTime(self.gen, self.seq, self._site.clock.now_ms() - round(ago * MINUTE))

    async def tell(self, *several: Feed) -> None:
        await self._site.produce(
            Topic.FEED, 0, *(Record(getattr(one, "user_id", "").encode(), encode(one)) for one in several)
        )

    async def heard(self) -> None:
        await self._site.applied(0, self.seq, "notifier")

    async def differences(self) -> list[str]:
        ledger = [{"shard": 0, **msgspec.structs.asdict(row), "cause_id": row.cause[1]} for row in self.rows]
        site = self._site
        log = [Seen(r.offset, r.timestamp, r.key, r.value, {}) for r in await site.records(Topic.FEED, 0)]
        snapshot = Snapshot(
            SHARDS, {1: msgspec.json.decode(encode_rules(self.rules))},
            salt=await site.pool.fetchval("SELECT salt FROM control.installation"),
            ledger=ledger, feed={0: log}, messages=await _messages(site),
            outcome_rows=await site.rows("SELECT * FROM notifier.outcome"),
        )  # fmt: skip
        return oracle_messages.check(snapshot)


async def _states(site: Site) -> list[tuple[str, str]]:
    return [(m["state"], m["reason"]) for m in await site.rows("SELECT * FROM notifier.message ORDER BY cause_seq")]


async def _came_to(site: Site, running: Notifying, *states: tuple[str, str]) -> None:
    async def reached() -> bool:
        running.check()
        return await _states(site) == list(states)

    await until(reached)


async def test_what_waits_is_judged_when_the_feeds_time_has_come_and_not_the_clocks(any_site: Site) -> None:
    """The owner dies in between, the feed is told again, and a time is told that is too early by a moment."""
    site, phones = any_site, Phones()
    told = Telling(site, SEARCHED)
    await site.install(told.rules)
    (user,) = users_of(0, 1)
    rows = [told.device(user), told.moment(user, "City Searched", 61, NEW_YORK)]
    due = rows[1].occurred_at + HOUR
    await told.tell(*rows, FeedTime(1, 2, due - 1))
    async with site.notifier(phones) as running:
        await told.heard()
        await asyncio.sleep(0.6)  # its moment has passed by the clock
        assert await _states(site) == [("waiting", "")]
        (pending,) = await queries.pending(site.pool, 0, user, "searched")
        assert (pending["occurrence"], pending["release_at"]) == ("moment:City Searched:m-2", iso(due))
        await _quietly(running)
    await told.tell(*rows)
    async with site.notifier(phones) as running:
        await asyncio.sleep(0.6)
        assert await _states(site) == [("waiting", "")]
        await told.tell(FeedTime(1, 2, due))
        await _came_to(site, running, ("sent", ""))
    await site.pool.execute("UPDATE spine.shard_position SET next_offset = 0, last_offset = -1, last_src = -1")
    async with site.notifier(phones) as running:
        await told.heard()
        running.reader._generation = -1  # the group is rebalanced
        await told.tell(FeedTime(1, 2, due + 1), told.device(users_of(0, 2)[1]))
        await told.heard()
        assert len(await _messages(site)) == 1
    assert [(p.title, p.body) for p in phones.pushes] == [("New York City?", "City Searched")]
    assert await _outcomes(site) == [(user, "sent", "")]
    assert await told.differences() == []


async def test_what_comes_in_between_calls_it_off(any_site: Site) -> None:
    """In the same batch and in a later one, under another owner; not if it is about another city, came before, or when
    the delay was over."""
    site, phones = any_site, Phones()
    told = Telling(site, SEARCHED)
    await site.install(told.rules)
    at_once, later, elsewhere, before, too_late = users_of(0, 5)
    users = {at_once: 69, later: 68, elsewhere: 67, before: 66, too_late: 90}
    rows = [r for u, ago in users.items() for r in (told.device(u), told.moment(u, "City Searched", ago, NEW_YORK))]
    await told.tell(*rows, told.moment(at_once, "City Added", 68, NEW_YORK))
    async with site.notifier(phones) as running:
        await told.heard()
        assert sorted(await _states(site)) == [("suppressed", "called_off"), *[("waiting", "")] * 4]
        await _quietly(running)
    await told.tell(
        told.moment(later, "City Added", 10, NEW_YORK, mode="import"),
        told.moment(elsewhere, "City Added", 10, BOSTON),
        told.moment(before, "City Added", 67, NEW_YORK),
        told.moment(too_late, "City Added", 30, NEW_YORK),
    )
    async with site.notifier(phones) as running:
        await told.heard()
        await told.tell(told.time(0))
        off, sent = ("suppressed", "called_off"), ("sent", "")
        await _came_to(site, running, off, off, sent, sent, sent)
    assert {p.token for p in phones.pushes} == {f"t-{u}" for u in (elsewhere, before, too_late)}
    assert sorted(what[1:] for what in await _outcomes(site)) == [sent, sent, sent, off, off]
    (shown,) = await queries.messages(site.pool, SHARDS, later, "", "", "", 10)
    assert shown["gates"] == [
        {
            "gate": "unless", "passed": False,
            "values": {"by": "moment", "what": "City Added", "id": "m-12", "occurred_at": told.rows[11].occurred_at},
        }
    ]  # fmt: skip
    assert await told.differences() == []


async def test_what_came_too_late_to_wait_still_lets_the_rest_of_its_upload_come(site: Site) -> None:
    """A phone was offline for an hour and sends all of it: the search is over its delay, and the city was added. No time
    that was told before, and none that was told over missing rows, makes it due."""
    told, phones = Telling(site, SEARCHED), Phones()
    await site.install(told.rules)
    one, two = users_of(0, 2)
    await told.tell(told.device(one), told.device(two), told.time(0))
    async with site.notifier(phones) as running:
        await told.heard()
        searches = [told.moment(user, "City Searched", 61, NEW_YORK) for user in (one, two)]
        await told.tell(*searches)
        await told.heard()
        added = told.moment(one, "City Added", 60.5, NEW_YORK)
        await told.tell(told.time(-1))  # the row that calls off is missing
        await asyncio.sleep(0.6)
        assert await _states(site) == [("waiting", "")] * 2
        await told.tell(added, told.time(-2))
        await _came_to(site, running, ("suppressed", "called_off"), ("sent", ""))
    assert [p.token for p in phones.pushes] == [f"t-{two}"]
    assert await told.differences() == []


async def test_everything_is_asked_when_the_delay_is_over(site: Site) -> None:
    """Consent, phone and audience may have changed; quiet hours are held on to, and until they are over whoever lets no
    place be recorded any more may say so."""
    site.move_time(_at(21))
    meant = msgspec.structs.replace(SEARCHED, audience=Audience(activity=["active"]), freshness_seconds=86_400)
    told, phones = Telling(site, meant, quiet=NIGHT), Phones()
    await site.install(told.rules)
    fine, hides, out, gone, another = users_of(0, 5)
    begin = [
        row
        for user in (fine, hides, out, gone, another)
        for row in (told.device(user), told.moment(user, "City Searched", 0, BOSTON))
    ]
    await told.tell(*begin)
    async with site.notifier(phones) as running:
        await told.heard()
        changes = [
            *(told.row(u, "activity_changed", {"from": "new", "to": "active"}) for u in (fine, hides, out, gone)),
            told.row(out, "consent_set", {"push": False}),
            told.row(gone, "device_removed", {"device_id": f"d-{gone}"}),
        ]
        await told.tell(*changes)
        await _later(site, _at(22, 1))
        await told.tell(told.time(0))
        refused = [("suppressed", "no_consent"), ("suppressed", "no_device"), ("suppressed", "not_in_audience")]
        await _came_to(site, running, ("held", ""), ("held", ""), *refused)
        await told.tell(told.row(hides, "consent_set", {"location": False}))
        refused.insert(0, ("suppressed", "called_off"))
        await _came_to(site, running, ("held", ""), *refused)
        await _later(site, _at(7, 1, day=11))
        await _came_to(site, running, ("sent", ""), *refused)
    assert [p.title for p in phones.pushes] == ["Boston?"]
    assert await told.differences() == []


async def test_segments_are_waited_for_and_waited_out(site: Site) -> None:
    """Entered and still in it an hour later; whoever left meanwhile may come again, and that is another time."""
    told, phones = Telling(site, KEEN, GONE), Phones()
    await site.install(told.rules)
    stays, leaves, comes_again = users_of(0, 3)
    await told.tell(
        *(told.device(user) for user in (stays, leaves, comes_again)),
        told.entered(stays, 70),
        told.entered(stays, 70, segment="loyal_active"),
        told.entered(leaves, 70),
        told.entered(comes_again, 70),
        told.entered(leaves, 11, "exited"),
        told.entered(comes_again, 65, "exited"),
        told.entered(comes_again, 61),
    )
    async with site.notifier(phones) as running:
        await told.heard()
        known = decode_recipient(
            await site.pool.fetchval("SELECT body FROM notifier.recipient WHERE user_id = $1", stays)
        )
        assert known.segments == ("loyal_active", "newcomers")
        await told.tell(told.time(0))
        off, sent = ("suppressed", "called_off"), ("sent", "")
        await _came_to(site, running, sent, off, off, sent, sent, sent)
    assert sorted((p.token, p.title, p.body) for p in phones.pushes) == sorted(
        (f"t-{user}", title, "In their first days")
        for user, title in ((stays, "Hi"), (leaves, "Bye"), (comes_again, "Bye"), (comes_again, "Hi"))
    )
    assert await told.differences() == []


async def test_an_event_without_delay_is_a_reason_like_any_change(site: Site) -> None:
    """Of the events of one name only those with the value asked for, and no imported history."""
    told, phones = Telling(site, READ), Phones()
    await site.install(told.rules)
    (user,) = users_of(0, 1)
    rows = [
        told.device(user),
        told.moment(user, "Screen Viewed", 3, name="home"),
        told.moment(user, "Screen Viewed", 2, name="guide", mode="import"),
        told.moment(user, "Screen Viewed", 90, name="guide"),
        told.moment(user, "Screen Viewed", 1, name="guide"),
    ]
    await told.tell(*rows, *rows)
    async with site.notifier(phones) as running:
        await told.heard()
        await _came_to(site, running, ("suppressed", "stale"), ("sent", ""))
    assert await told.differences() == []


async def test_from_the_event_to_the_push_through_both_services(site: Site) -> None:
    """The segmenter tells of the events, and of the time when all that was received by then has been told."""
    told, phones = Telling(site, SEARCHED), Phones()
    await site.install(told.rules)
    version = 2
    one, two = users_of(0, 2)
    now, last = site.clock.now_ms(), -1
    async with site.segmenter(), site.notifier(phones) as running:
        for user, name, ago in ((one, "City Searched", 65), (two, "City Searched", 64), (two, "City Added", 63)):
            phone = Context(Device(f"d-{user}", "ios", f"t-{user}"), "en-US")
            await site.decide(
                event(name, now - ago * MINUTE, received=now, user=user, city=BOSTON, context=phone, src=last + 1,
                      prev=last, rules=version), shard=0,
            )  # fmt: skip
            last += 1
        await site.decide(TimeRecord(last, b"", version, now), shard=0)
        await _came_to(site, running, ("sent", ""), ("suppressed", "called_off"))
    assert [(p.token, p.title) for p in phones.pushes] == [(f"t-{one}", "Boston?")]
    async with site.pool.acquire() as connection:
        shown = trail.lines(await trail.road(connection, two, 0), "raw", "context")
    assert "searched suppressed (called_off)" in shown[2] and "moment" in shown[3] and "City Searched" in shown[3], (
        shown
    )
    moments = [r for r in await site.ledger(0) if r["kind"] == "moment"]
    assert [json.loads(r["payload"])["event"] for r in moments] == ["City Searched", "City Searched", "City Added"]
    assert await site.pool.fetchval("SELECT count(*) FROM segmenter.ledger WHERE kind = 'moment'") == 0
