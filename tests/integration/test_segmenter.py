"""What the segmenter makes of decisions: states, tallies, ledger and feed, once each, whoever wrote them how often."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from services.segmenter import shard as shard_module
from services.segmenter import store, sweeper
from services.segmenter.domain.state import decode_hot
from shared.contracts.events import Accepted, FeedTime, Rejected, TimeRecord, decode_feed
from shared.contracts.rules import Rules, Segment
from shared.contracts.topics import Topic
from shared.data.db import transaction
from shared.data.ledger import CHANGE_KINDS
from shared.kafka import fenced_reader
from shared.kafka.sender import Record, Sender, SendFailed
from shared.process.errors import Transient
from shared.process.metrics import BUGS, GAPS, REPEATS, SEGMENTER_EVENTS
from tests.support.people import BOSTON, DAY, HOUR, NEW_YORK, T0, event, weather, with_days
from tests.support.spine import SHARDS, Site, counted, numbered, until, users_of


class Decided:
    """Numbers a shard's decisions as ingest does."""

    def __init__(self, shard: int = 0) -> None:
        self.last = -1
        self.user = users_of(shard, 1)[0]

    def event(self, name: str, at: int, **how: Any) -> Accepted:
        src, prev = self.last + 1, self.last
        self.last = src
        return event(name, at, src=src, prev=prev, **{"user": self.user, **how})

    def refused(self, user: str, reason: str, at: int) -> Rejected:
        src, prev = self.last + 1, self.last
        self.last = src
        return Rejected(src, prev, b"", 1, user, f"m-{src}", reason, at, "app")

    def time(self, as_of: int, rules: int = 1) -> TimeRecord:
        return TimeRecord(self.last, b"", rules, as_of)


async def _hot(site: Site, user: str) -> Any:
    row = await site.pool.fetchrow("SELECT hot, due_bucket FROM segmenter.user_state WHERE user_id = $1", user)
    assert row is not None, user
    return decode_hot(row["hot"])


async def _require_whole(site: Site, shard: int) -> list[dict[str, Any]]:
    """Numbers without holes, each public row naming the one before it, and tallies that are the sum of the rows."""
    rows = await site.ledger(shard)
    assert numbered(rows) == list(range(1, len(rows) + 1))
    changes = [0, *(row["seq"] for row in rows if row["kind"] in CHANGE_KINDS)]
    assert [row["prev_seq"] for row in rows if row["kind"] in CHANGE_KINDS] == changes[:-1]
    counted_here: Counter[str] = Counter()
    for row in rows:
        payload = json.loads(row["payload"])
        if row["kind"] in ("stage_changed", "activity_changed"):
            kind = row["kind"].removesuffix("_changed")
            counted_here[f"{kind}:{payload['to']}"] += 1
            if payload["from"] is not None:
                counted_here[f"{kind}:{payload['from']}"] -= 1
        elif row["kind"].startswith("segment_"):
            counted_here[f"segment:{payload['segment']}"] += 1 if row["kind"] == "segment_entered" else -1
        elif row["kind"].startswith("cohort_"):
            sign = 1 if row["kind"] == "cohort_entered" else -1
            counted_here[f"cohort:{payload['relation']}:{payload['city_id']}"] += sign
    told = {k: n for k, n in (await site.tallies(shard)).items() if not k.startswith(("users:", "rate:"))}
    assert told == {k: n for k, n in counted_here.items() if n}
    return rows


async def test_an_event_becomes_state_ledger_tallies_and_feed(any_site: Site) -> None:
    site, log = any_site, Decided()
    await site.decide(
        log.event("Application Opened", T0),
        log.event("City Added", T0 + 1, city=NEW_YORK),
        log.refused("somebody", "malformed_json", T0),
        shard=0,
    )
    async with site.segmenter() as running:
        await site.applied(0, 2)

        async def fed() -> bool:
            running.check()
            return len(await site.fed(0)) == len(await site.ledger(0))

        await until(fed)
    rows = await _require_whole(site, 0)
    assert [(row["kind"], row["src"]) for row in rows][-1] == ("dead_letter", 2)
    assert {row["log_id"] for row in rows} == {"log-1"}
    feed = await site.fed(0)
    assert [(r.seq, r.prev_seq, r.kind, r.user_id) for r in feed] == [
        (row["seq"], row["seq"] - 1, row["kind"], row["user_id"]) for row in rows
    ]
    changes = [json.loads(r.value) for r in await site.records(Topic.CHANGES, 0)]
    assert [(c["seq"], c["prev_seq"], c["kind"]) for c in changes] == [
        (row["seq"], row["prev_seq"], row["kind"]) for row in rows if row["kind"] in CHANGE_KINDS
    ]
    (dead,) = [json.loads(r.value) for r in await site.records(Topic.DEAD_LETTERS, 0)]
    assert (dead["reason"], dead["raw"]) == ("malformed_json", {"partition": 0, "offset": 2})
    assert await site.tallies() == {
        "users:all": 1, "stage:convert": 1, "activity:new": 1, "segment:active_30d": 1, "segment:newcomers": 1,
        f"cohort:added:{NEW_YORK}": 1, "rate:customer": 1,
    }  # fmt: skip
    (member,) = await site.rows("SELECT * FROM segmenter.cohort_member")
    entered = next(row for row in rows if row["kind"] == "cohort_entered")
    assert (member["user_id"], member["entered_seq"]) == (log.user, entered["seq"])


async def test_the_first_decision_counts_whoever_wrote_the_second(site: Site) -> None:
    """Two ingests under different rules: one took the event in, the other refused it. Readers keep to the first."""
    log = Decided()
    first = [
        log.event("Application Opened", T0),
        log.refused(log.user, "pii:version", T0),
        log.event("City Added", T0, city=BOSTON),
    ]
    other = [
        Rejected(0, -1, b"", 1, log.user, "m-0", "pii:user_id", T0, "app"),
        msgspec.structs.replace(first[0], src=1, prev=0, message_id="zombie", name="City Added", city_id=NEW_YORK),
    ]
    with counted(REPEATS, "segmenter") as repeats:
        await site.decide(*first[:2], *other, first[2], *first, shard=0)
        async with site.segmenter():
            await site.applied(0, 2)

            async def read() -> bool:
                position = await site.pool.fetchval(
                    "SELECT next_offset FROM spine.shard_position WHERE service = 'segmenter' AND shard = 0"
                )
                return bool(position == 8)

            await until(read)
    rows = await _require_whole(site, 0)
    assert [row["src"] for row in rows if row["kind"] == "dead_letter"] == [1]
    assert {r["city_id"] for r in await site.rows("SELECT city_id FROM segmenter.cohort_member")} == {BOSTON}
    assert repeats == [5]


async def test_nothing_is_applied_over_a_gap_until_it_is_healed(site: Site) -> None:
    """Records that were lost must not turn into users who never did anything."""
    log = Decided()
    several = [log.event("Application Opened", T0 + n * HOUR, message_id=f"m{n}") for n in range(5)]
    with counted(GAPS, "segmenter") as gaps:
        await site.decide(several[0], several[3], several[4], shard=0)
        async with site.segmenter():
            await site.applied(0, 0)
            await asyncio.sleep(0.2)
            assert (await _hot(site, log.user)).opens == 1
            await site.decide(*several[1:], shard=0)
            await site.applied(0, 4)
    assert (await _hot(site, log.user)).opens == 5
    assert gaps == [2]


async def test_a_stopped_segmenter_goes_on_where_it_was(any_site: Site) -> None:
    site, log = any_site, Decided()
    await site.decide(*(log.event("Screen Viewed", T0 + n, message_id=f"m{n}") for n in range(20)), shard=0)
    async with site.segmenter(batch=7):
        await site.applied(0, 9)
    await site.decide(*(log.event("Screen Viewed", T0 + n, message_id=f"m{n}") for n in range(20, 30)), shard=0)
    async with site.segmenter(batch=7) as running:
        await site.applied(0, 29)
        running.check()
    assert (await _hot(site, log.user)).screens == 30
    await _require_whole(site, 0)


class Failing(Sender):
    """A sender that the broker refuses now and then, before or after the records were appended."""

    def __init__(self, real: Sender, plan: list[str]) -> None:
        self._real, self.plan = real, plan

    async def send(self, topic: str, partition: int, records: Any) -> int:
        what = self.plan.pop(0) if self.plan else "ok"
        if what == "before":
            raise SendFailed("refused")
        last = await self._real.send(topic, partition, records)
        if what == "after":
            raise SendFailed("the answer was lost")
        return last


def _once(feed: list[Any]) -> list[Any]:
    """The feed as a reader applies it: by number, over no gap."""
    last, kept = 0, []
    for row in feed:
        assert row.prev_seq <= last, f"gap before {row.seq}"
        if row.seq > last:
            kept.append(row)
            last = row.seq
    return kept


async def test_rows_that_were_never_sent_follow_a_restart_in_order(site: Site) -> None:
    """Committed and not yet published when the process died: the table serves them to the next owner."""
    log = Decided()

    class Dead(Sender):
        def __init__(self) -> None:
            return

        async def send(self, topic: str, partition: int, records: Any) -> int:
            raise SendFailed("no broker")

    await site.decide(log.event("Application Opened", T0), log.event("City Added", T0, city=BOSTON), shard=0)
    async with site.segmenter(sender=Dead()):
        await site.applied(0, 1)
    assert await site.fed(0) == []
    relayed = "SELECT relayed FROM spine.shard_owner WHERE service = 'segmenter' AND shard = 0"
    assert await site.pool.fetchval(relayed) == 0
    await site.decide(log.event("City Added", T0 + DAY, city=NEW_YORK), shard=0)
    async with site.segmenter():
        await site.applied(0, 2)
        rows = await site.ledger(0)

        async def all_noted() -> bool:
            return bool(await site.pool.fetchval(relayed) == len(rows))

        await until(all_noted)
    assert [r.seq for r in await site.fed(0)] == numbered(rows)


@pytest.mark.parametrize("plan", [["before"] * 3, ["after"] * 3, ["after", "before", "ok", "after"]])
async def test_whatever_the_broker_refuses_readers_see_each_row_once_in_order(site: Site, plan: list[str]) -> None:
    log = Decided()
    await site.decide(*(log.event("City Added", T0 + n, city=100 + n, message_id=f"c{n}") for n in range(6)), shard=0)
    async with site.segmenter(sender=Failing(site.sender, plan), batch=2):
        await site.applied(0, 5)
        rows = await site.ledger(0)

        async def all_there() -> bool:
            return len(_once(await site.fed(0))) == len(rows)

        await until(all_there)
    assert [r.seq for r in _once(await site.fed(0))] == numbered(rows)
    if "after" in plan:
        assert len(await site.fed(0)) > len(rows)


# -- time -----------------------------------------------------------------------------------------------


async def test_the_sweep_makes_users_inactive_once_at_the_moment_they_fell_due(any_site: Site) -> None:
    """Nobody does anything; a month later the ledger says so, with the due moment and a recorded tick as cause."""
    site, log = any_site, Decided()
    users = users_of(0, 30)
    await site.decide(*(log.event("Application Opened", T0 + n, user=u) for n, u in enumerate(users)), shard=0)
    await site.decide(log.time(T0 + 30 * DAY - 1), shard=0)
    async with site.segmenter():

        async def at_risk() -> bool:
            return (await site.tallies()).get("activity:at_risk") == 30

        await until(at_risk)
        await site.decide(log.time(T0 + 30 * DAY + 14), shard=0)

        async def half() -> bool:
            return (await site.tallies()).get("activity:inactive") == 15

        await until(half)
        await site.decide(log.time(T0 + 200 * DAY), shard=0)

        async def all_lapsed() -> bool:
            return (await site.tallies()).get("activity:lapsed") == 30

        await until(all_lapsed)
    rows = await _require_whole(site, 0)
    became = [r for r in rows if r["kind"] == "activity_changed" and json.loads(r["payload"])["to"] == "inactive"]
    assert {r["user_id"]: r["occurred_at"] for r in became} == {u: T0 + n + 30 * DAY for n, u in enumerate(users)}
    assert len(became) == 30
    assert {r["cause_type"] for r in became} == {"tick"}
    ticks = await site.rows("SELECT at_src, as_of FROM segmenter.tick_log WHERE shard = 0 ORDER BY tick_id")
    assert [t["as_of"] for t in ticks][1:] == [T0 + 30 * DAY - 1, T0 + 30 * DAY + 14, T0 + 200 * DAY]
    assert {t["at_src"] for t in ticks[1:]} == {29}
    assert await site.pool.fetchval("SELECT count(*) FROM segmenter.user_state WHERE due_bucket IS NOT NULL") == 0


async def test_time_that_is_ahead_of_what_was_applied_does_not_count(site: Site) -> None:
    """A time record behind decisions that are missing here would call users inactive whose events are on the way."""
    log = Decided()
    await site.decide(log.event("Application Opened", T0), shard=0)
    await site.decide(TimeRecord(7, b"", 1, T0 + 50 * DAY), shard=0)
    async with site.segmenter():
        await site.applied(0, 0)
        await asyncio.sleep(0.2)
        assert (await site.tallies())["activity:new"] == 1
        assert await site.pool.fetchval("SELECT watermark FROM segmenter.shard_time WHERE shard = 0") == 0


async def test_a_late_upload_does_not_set_the_watermark_back(site: Site) -> None:
    log = Decided()
    await site.decide(log.event("Application Opened", T0), log.time(T0 + 10 * DAY), shard=0)
    await site.decide(log.event("Screen Viewed", T0 + DAY, received=T0 + 4 * DAY), log.time(T0 + 5 * DAY), shard=0)
    async with site.segmenter():
        await site.applied(0, 1)

        async def read() -> bool:
            return bool(
                await site.pool.fetchval(
                    "SELECT next_offset FROM spine.shard_position WHERE service = 'segmenter' AND shard = 0"
                )
                == 4
            )

        await until(read)
        assert await site.pool.fetchval("SELECT watermark FROM segmenter.shard_time WHERE shard = 0") == T0 + 10 * DAY

        async def at_day_ten() -> bool:
            return bool((await _hot(site, log.user)).activity == "active")

        await until(at_day_ten)


async def test_readers_of_the_feed_are_told_the_time(site: Site) -> None:
    log = Decided()
    await site.decide(log.event("Application Opened", T0), log.time(T0 + DAY), shard=0)
    async with site.segmenter():

        async def told() -> list[FeedTime]:
            found = [decode_feed(r.value) for r in await site.records(Topic.FEED, 0)]
            return [t for t in found if isinstance(t, FeedTime)]

        (time,) = await until(told)
    rows = await site.ledger(0)
    assert (time.as_of, time.seq) == (T0 + DAY, rows[-1]["seq"])


async def test_time_is_told_behind_all_that_fell_due_by_then(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a delay to be over would otherwise judge before they heard of the user leaving a segment."""
    monkeypatch.setattr(sweeper, "_PAGE", 1)
    log, end = Decided(), T0 + 20 * DAY
    users = users_of(0, 10)
    await site.decide(*(log.event("Application Opened", T0, user=user) for user in users), log.time(end), shard=0)
    async with site.segmenter():

        async def told() -> list[Any]:
            found = [decode_feed(r.value) for r in await site.records(Topic.FEED, 0)]
            return found if any(isinstance(one, FeedTime) and one.as_of == end for one in found) else []

        found = await until(told)
    order = [one.as_of if isinstance(one, FeedTime) else one.payload.get("to") for one in found]
    assert Counter(order)["at_risk"] == 10
    assert order.index(end) > max(n for n, what in enumerate(order) if what == "at_risk")


# -- rules ----------------------------------------------------------------------------------------------


async def test_new_rules_reach_everyone_also_those_who_do_nothing(site: Site) -> None:
    """Page by page, and whoever stops in between goes on: nobody is left behind under the old version."""
    log = Decided()
    users = users_of(0, 40)
    await site.decide(*(log.event("Application Opened", T0, user=u) for u in users), log.time(T0 + DAY), shard=0)
    stages: Rules = msgspec.structs.replace(
        weather(), segments=[Segment("openers", "All who opened", stage=["acquire"])]
    )
    async with site.segmenter():
        await site.applied(0, 39)
        assert await site.install(stages) == 2
        await site.decide(log.time(T0 + DAY, rules=2), shard=0)

        async def entered() -> bool:
            return (await site.tallies()).get("segment:openers") == 40

        await until(entered)

        async def walked() -> bool:
            return await site.rows("SELECT 1 FROM segmenter.shard_time WHERE shard = 0 AND rules_cursor IS NULL") != []

        await until(walked)
    rows = await _require_whole(site, 0)
    entered_rows = [r for r in rows if r["kind"] == "segment_entered" and "openers" in r["payload"]]
    assert {(r["cause_type"], r["cause_id"], r["occurred_at"]) for r in entered_rows} == {("rules", "2", T0 + DAY)}
    assert {r["user_id"] for r in entered_rows} == set(users)
    assert "segment:newcomers" not in await site.tallies()
    assert await site.rows("SELECT DISTINCT rules_version FROM segmenter.user_state") == [{"rules_version": 2}]


async def test_a_walk_through_everyone_goes_on_after_a_restart(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.segmenter.sweeper._PAGE", 5)
    log = Decided()
    users = users_of(0, 23)
    await site.decide(*(log.event("Application Opened", T0, user=u) for u in users), log.time(T0 + DAY), shard=0)
    async with site.segmenter() as running:
        await site.applied(0, 22)
        await running.stop()
        running.tasks.clear()
        await site.install(with_days(new=3))
        await site.decide(log.time(T0 + DAY, rules=2), shard=0)
        segmenter = running.segmenter
        await running.reader._take_over()

        async def adopted() -> bool:
            await segmenter.handle(await running.reader._consumer.fetch(range(SHARDS), timeout_ms=50, max_records=100))
            return segmenter.shards[0].version == 2

        await until(adopted)
        await segmenter._sweeper._walk_page(segmenter.shards[0])
    (standing,) = await site.rows("SELECT rules_cursor FROM segmenter.shard_time WHERE shard = 0")
    assert standing["rules_cursor"] == sorted(users)[4]
    async with site.segmenter():

        async def walked() -> bool:
            left = await site.pool.fetchval("SELECT count(*) FROM segmenter.user_state WHERE rules_version = 1")
            return bool(left == 0)

        await until(walked)
    await _require_whole(site, 0)


async def test_rules_that_are_not_there_yet_are_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fenced_reader, "backoff_seconds", lambda *_: 0.01)
    log = Decided()
    await site.decide(log.event("Application Opened", T0, rules=2), shard=0)
    async with site.segmenter() as running:
        await asyncio.sleep(0.3)
        running.check()
        await site.install(with_days(new=3))
        await site.applied(0, 0)
    assert (await _hot(site, log.user)).rules_version == 2


# -- repeats, cache, faults -----------------------------------------------------------------------------


async def test_repeats_within_a_day_count_once_far_beyond_the_ring(any_site: Site) -> None:
    """200 events, all posted again 23 hours later: also with the cache gone, and the ids read from the spill."""
    site, log = any_site, Decided()
    await site.decide(*(log.event("Screen Viewed", T0 + n, message_id=f"m{n}") for n in range(200)), shard=0)
    async with site.segmenter(batch=60):
        await site.applied(0, 199)
        again = [
            log.event("Screen Viewed", T0 + n, received=T0 + 23 * HOUR, message_id=f"m{n}") for n in range(0, 200, 2)
        ]
        await site.decide(*again, shard=0)
        await site.applied(0, log.last)
    later = [log.event("Screen Viewed", T0 + n, received=T0 + 23 * HOUR, message_id=f"m{n}") for n in range(1, 200, 2)]
    with counted(SEGMENTER_EVENTS, "duplicate") as duplicates:
        await site.decide(*later, log.event("Screen Viewed", T0, received=T0 + 23 * HOUR, message_id="new"), shard=0)
        async with site.segmenter():
            await site.applied(0, log.last)
    assert duplicates == [100]
    assert (await _hot(site, log.user)).screens == 201
    assert await site.pool.fetchval("SELECT count(*) FROM segmenter.dedup_spill") >= 168


async def test_it_makes_no_difference_whether_a_user_is_cached(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same stream through one owner with everything in memory, and through one that forgets after each batch."""
    names = ["Application Opened", "City Added", "Screen Viewed", "City Searched", "Application Uninstalled"]
    logs = {0: Decided(0), 1: Decided(1)}
    for shard, log in logs.items():
        users = [u.replace("u-", "") for u in users_of(0, 4)]  # the same names on both shards: only the shard differs
        events = [
            log.event(names[n % 5], T0 + n * 7 * HOUR, user=users[n % 4], city=100 + n % 3 if "City" in names[n % 5] else None,
                      message_id=f"m{n % 50}", context=None)
            for n in range(120)
        ]  # fmt: skip
        await site.decide(*events, log.time(T0 + 100 * DAY), shard=shard)
    trim = "services.segmenter.pipeline.Segmenter._trim"

    def forget(self: Any, state: Any) -> None:
        if state.shard == 1:
            state.users.clear()

    monkeypatch.setattr(trim, forget)
    async with site.segmenter(batch=9):
        await site.applied(0, 119)
        await site.applied(1, 119)

        async def swept() -> bool:
            rows = await site.rows("SELECT 1 FROM segmenter.tick_log WHERE as_of = $1", T0 + 100 * DAY)
            return len(rows) == 2

        await until(swept)
    told = [
        [
            (r["user_id"], r["kind"], r["payload"], r["occurred_at"], r["cause_type"], r["src"])
            for r in await _require_whole(site, s)
        ]
        for s in range(SHARDS)
    ]
    assert sorted(told[0]) == sorted(told[1])
    assert await site.tallies(0) == await site.tallies(1)
    states = [
        {
            r["user_id"]: r["hot"]
            for r in await site.rows("SELECT user_id, hot FROM segmenter.user_state WHERE shard = $1", s)
        }
        for s in range(SHARDS)
    ]
    assert states[0] == states[1]


async def test_a_record_that_breaks_the_code_is_set_aside_and_the_rest_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three failures at one place its records are tried one by one, and the one that fails is dead-lettered."""
    monkeypatch.setattr(fenced_reader, "backoff_seconds", lambda *_: 0.01)
    log = Decided()
    several = [
        log.event(name, T0 + n) for n, name in enumerate(["Screen Viewed", "Screen Viewed", "Poison", "Screen Viewed"])
    ]
    await site.decide(*several, shard=0)
    async with site.segmenter() as running:
        running.segmenter._fault = "Poison"
        await site.applied(0, 3)
        running.check()
    rows = await _require_whole(site, 0)
    assert [(r["src"], json.loads(r["payload"])["reason"]) for r in rows if r["kind"] == "dead_letter"] == [
        (2, "bug:decide")
    ]
    assert (await _hot(site, log.user)).screens == 3


NUL = "some\0body"
"""No text of Postgres: neither a user nor a ledger row can have it."""


@pytest.mark.parametrize(
    ("broken", "letter"),
    [
        (lambda log: log.refused(NUL, "malformed_json", T0), ("", "bug:record", "", "")),
        (lambda log: log.event("Screen Viewed", T0, user=NUL), ("", "bug:record", "", "")),
        # a city beyond int4 passes the fold, and fails where its member is written
        (lambda log: log.event("Default City Set", T0, city=1 << 40), (None, "bug:decide", "m-2", "test")),
    ],
    ids=["a refusal at the commit", "an event while its user is loaded", "an event at the commit"],
)
async def test_wherever_a_record_fails_it_is_set_aside_and_the_rest_goes_on(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: Callable[[Decided], Any],
    letter: tuple[str | None, str, str, str],
) -> None:
    """Also where what is kept of it in its place fails again: then only its address is kept."""
    monkeypatch.setattr(fenced_reader, "backoff_seconds", lambda *_: 0.01)
    log = Decided()
    screens = [log.event("Screen Viewed", T0, message_id="m-0"), log.event("Screen Viewed", T0, message_id="m-1")]
    await site.decide(*screens, broken(log), log.event("Screen Viewed", T0, message_id="m-3"), shard=0)
    with counted(BUGS, "segmenter") as bugs:
        async with site.segmenter() as running:
            await site.applied(0, 3)
            running.check()

            async def told() -> list[Any]:
                return await site.records(Topic.DEAD_LETTERS, 0)

            (record,) = await until(told)
    (dead,) = [row for row in await _require_whole(site, 0) if row["kind"] == "dead_letter"]
    payload = json.loads(dead["payload"])
    user, *rest = letter
    assert [dead["user_id"], payload["reason"], payload["message_id"], payload["source"]] == [
        log.user if user is None else user,
        *rest,
    ]
    assert json.loads(record.value)["raw"] == {"partition": 0, "offset": 2}
    assert (await _hot(site, log.user)).screens == 3
    asides = [r for r in caplog.records if r.levelname == "CRITICAL"]
    assert [r.fields["times"] for r in asides] == list(range(1, len(asides) + 1))  # type: ignore[attr-defined]
    assert bugs == [3 * len(asides)]


async def test_rules_that_cannot_be_entered_are_laid_to_no_record(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every record behind them would fail: to set them aside one by one would lose everything quietly."""
    monkeypatch.setattr(fenced_reader, "backoff_seconds", lambda *_: 0.0)
    log = Decided()
    await site.pool.execute("INSERT INTO control.rules (version, pack, body) VALUES (2, 'weather', '{}')")
    await site.decide(
        log.event("Screen Viewed", T0), *(log.event("Screen Viewed", T0, rules=2) for _ in range(4)), shard=0
    )
    async with site.segmenter() as running:
        with pytest.raises(msgspec.ValidationError):
            await running.died()
    assert not [row for row in await site.ledger(0) if row["kind"] == "dead_letter"]
    assert (await _hot(site, log.user)).screens == 1
    assert "set aside" not in caplog.text


async def test_a_fenced_segmenter_leaves_no_trace(site: Site) -> None:
    """Two owners by turns, each fencing the other in the middle of its work: the outcome is one owner's."""
    log = Decided()
    events = [log.event("City Added", T0 + n, city=100 + n % 20, message_id=f"m{n}") for n in range(60)]
    await site.decide(*events[:30], shard=0)
    async with site.segmenter(batch=3) as one, site.segmenter(batch=4) as two:
        await site.decide(*events[30:], shard=0)
        for _ in range(5):
            one.reader.doubt(Transient("a doubt"))
            await asyncio.sleep(0.05)
            two.reader.doubt(Transient("a doubt"))
            await asyncio.sleep(0.05)
        await site.applied(0, 59)
        one.check()
        two.check()
        rows = await _require_whole(site, 0)

        async def all_there() -> bool:
            return {r.seq for r in await site.fed(0)} == set(numbered(rows))

        await until(all_there)
    assert [r.seq for r in _once(await site.fed(0))] == numbered(rows)
    assert (await _hot(site, log.user)).activities == 60


async def test_repair_publishes_the_feed_again(site: Site) -> None:
    log = Decided()
    await site.decide(log.event("Application Opened", T0), shard=0)
    async with site.segmenter():
        await site.applied(0, 0)
        rows = await site.ledger(0)
        await site.pool.execute("INSERT INTO control.repair (topic, shard, after) VALUES ('user.feed.v1', 0, 2)")

        async def again() -> bool:
            return [r.seq for r in await site.fed(0)] == numbered(rows) + numbered(rows)[2:]

        await until(again)
        assert await site.pool.fetchval("SELECT count(*) FROM control.repair WHERE done_at IS NULL") == 0


# -- Postgres -------------------------------------------------------------------------------------------


async def test_users_are_loaded_by_key_and_due_users_by_index(site: Site) -> None:
    """An obvious join scans every user; that costs nothing in a test and everything at eight million."""
    await site.pool.execute(
        "INSERT INTO segmenter.user_state SELECT n % 2, 'user-' || n, 490000 + n % 900, 1, 'x', NULL FROM generate_series(1, 20000) n"
    )
    await site.pool.execute(
        "INSERT INTO segmenter.dedup_spill SELECT n % 2, 'user-' || n, 1, n FROM generate_series(1, 20000) n"
    )
    await site.pool.execute("ANALYZE segmenter.user_state, segmenter.dedup_spill")
    keys = ([n % 2 for n in range(5000)], [f"user-{n}" for n in range(5000)])
    queries: list[tuple[str, tuple[Any, ...]]] = [
        (store._LOAD, keys),
        (store._LOAD_COLD, keys),
        (store._LOAD_SPILL, (*keys, 0)),
        (store._DUE, (0, 490_010, -1, "", 100)),
        (store._WALK, (0, "user-5", 100)),
    ]
    for query, values in queries:
        plan = "\n".join(row[0] for row in await site.pool.fetch(f"EXPLAIN {query}", *values))
        assert "Index" in plan, plan
        assert "Seq Scan" not in plan, plan
        condition = next(line for line in plan.splitlines() if "Index Cond" in line)
        assert "due_bucket" in condition if query is store._DUE else "user_id" in condition, plan


async def test_ordinary_events_leave_the_due_index_alone(site: Site) -> None:
    """An update that changes an indexed column is three times as dear: events only ever lower the bucket."""
    log = Decided()
    await site.decide(log.event("Application Opened", T0), shard=0)
    async with site.segmenter():
        await site.applied(0, 0)
        (before,) = await site.rows("SELECT due_bucket FROM segmenter.user_state")
        # past its first week the user is due two weeks after each event
        await site.decide(*(log.event("Application Opened", T0 + n * DAY) for n in range(8, 12)), shard=0)
        await site.applied(0, 4)
        (after,) = await site.rows("SELECT due_bucket FROM segmenter.user_state")
        hot = await _hot(site, log.user)
        assert hot.due_at == T0 + 25 * DAY
        assert after == before
        await site.decide(log.time(T0 + 12 * DAY), shard=0)

        async def raised() -> bool:
            (row,) = await site.rows("SELECT due_bucket FROM segmenter.user_state")
            return bool(
                row["due_bucket"] == (await _hot(site, log.user)).due_at // shard_module.HOUR_MS > before["due_bucket"]
            )

        await until(raised)


async def test_a_foreign_record_in_the_topic_does_not_pass_unseen(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only ingest writes there: what cannot be read is no bad data, and skipping it would hide a lost decision."""
    monkeypatch.setattr(fenced_reader, "backoff_seconds", lambda *_: 0.0)
    await site.produce(Topic.EVENTS, 0, Record(b"k", b"not msgpack"))
    async with site.segmenter() as running:
        with pytest.raises(msgspec.DecodeError):
            await running.died()


async def test_the_ledgers_partitions_are_made_ahead_and_old_days_dropped(site: Site) -> None:
    from shared.data.ledger import prepare_partitions

    now = site.clock.real_ms()
    async with transaction(site.pool) as connection:
        await prepare_partitions(connection, now - 30 * DAY)
        await prepare_partitions(connection, now)
        await prepare_partitions(connection, now)
    rows = await site.rows(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'segmenter.outbox'::regclass"
    )
    assert 5 <= len(rows) <= 6
