"""Users who turn out to be one, on a real broker and a real Postgres: over two shards, once, whoever dies in between."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.local import migrate
from services.segmenter.domain.state import Hot, decode_cold, decode_hot
from services.segmenter.merger import Merger
from shared.contracts.events import Context, Device, TimeRecord
from shared.contracts.merges import Answered, Forwarded, decode_merge
from shared.contracts.topics import Topic
from shared.data.db import transaction
from shared.kafka.sender import Record
from shared.kafka.shard_consumer import Polled
from shared.process.errors import Transient
from tests.support.people import DAY, NEW_YORK, T0, event
from tests.support.spine import SHARDS, Phones, Segmenting, Site, until, users_of

ANON, KIM = users_of(0, 1, "anon")[0], users_of(1, 1, "kim")[0]
PHONE = Context(Device("d-1", "android", "t-1"), "en-US", "America/Chicago")


class Log:
    """Numbers the decisions of both shards, as ingest does."""

    def __init__(self, site: Site) -> None:
        self._site, self.last = site, [-1, -1]

    async def write(self, user: str, name: str, at: int, **how: Any) -> None:
        shard = 0 if user == ANON else 1
        src, prev = self.last[shard] + 1, self.last[shard]
        self.last[shard] = src
        identifies = how.pop("identifies", None)
        one = event(name, at, user=user, src=src, prev=prev, message_id=how.pop("message_id", f"{user}-{src}"), **how)
        await self._site.decide(msgspec.structs.replace(one, identifies=identifies), shard=shard)


async def state(site: Site, user: str) -> Hot | None:
    row = await site.pool.fetchval("SELECT hot FROM segmenter.user_state WHERE user_id = $1", user)
    return decode_hot(row) if row is not None else None


async def told(site: Site, shard: int) -> list[Any]:
    return [decode_merge(r.value).told for r in await site.records(Topic.MERGE, shard)]


async def opens(site: Site, running: Segmenting, expected: int) -> None:
    async def reached() -> bool:
        running.check()
        hot = await state(site, KIM)
        return hot is not None and hot.opens == expected

    await until(reached)


async def test_two_shards_make_one_user_of_two(any_site: Site) -> None:
    """The known user has the past, the cohort and the phone of the other one, and all that still comes; nobody counts twice."""
    site, log = any_site, Log(any_site)
    for number in range(3):
        await log.write(ANON, "Application Opened", T0 + number * DAY, context=PHONE)
    await log.write(ANON, "City Added", T0 + 2 * DAY, city=NEW_YORK)
    async with site.segmenter() as running, site.notifier(Phones()) as notifying:
        await site.applied(0, 3)
        await log.write(KIM, "$identify", T0 + 3 * DAY, identifies=ANON)
        await opens(site, running, 3)
        for _ in range(2):
            await log.write(ANON, "Application Opened", T0 + 4 * DAY, message_id="late")
        await opens(site, running, 4)
        await site.applied(0, 5)

        async def heard() -> bool:
            notifying.check()
            kim = await notifying.notifier.recipient(1, KIM)
            return kim is not None and bool(kim.devices) and await notifying.notifier.recipient(0, ANON) is None

        await until(heard)
        kim = await notifying.notifier.recipient(1, KIM)
        assert kim is not None and kim.devices[0].token == "t-1" and kim.assignment_id == ANON
        assert kim.added == (NEW_YORK,) and kim.locale == "en-US"
    laid_down, hot = await state(site, ANON), await state(site, KIM)
    assert laid_down is not None and (laid_down.merged_into, laid_down.due_at) == (KIM, -1)
    assert hot is not None and (hot.opens, hot.active_days, hot.stage) == (4, 4, "retain")
    tallies = await site.tallies()
    assert {k: n for k, n in tallies.items() if k.startswith(("users", "stage", "cohort"))} == {
        "users:all": 1, "stage:retain": 1, f"cohort:added:{NEW_YORK}": 1,
    }  # fmt: skip
    (member,) = await site.rows("SELECT user_id FROM segmenter.cohort_member")
    assert member["user_id"] == KIM
    assert [type(one) for one in await told(site, 1)] == [Answered, Forwarded]
    by_merge = await site.rows(
        "SELECT m.campaign FROM notifier.message m JOIN segmenter.ledger l ON l.shard = m.shard AND l.seq = m.cause_seq"
        " WHERE l.cause_type = 'merge'"
    )
    assert not by_merge, "a merge is no reason to write"


@pytest.mark.parametrize("lost", ["the answer", "what was heard"])
async def test_whoever_dies_in_between_loses_nothing(site: Site, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    """Laid down and answered is one commit. The answer is sent by the next owner where this one cannot; one that was read
    and not committed is read again."""
    log, apply = Log(site), Merger._apply
    for number in range(3):
        await log.write(ANON, "Application Opened", T0 + number * DAY)

    async def die(self: Merger, polled: Polled) -> None:
        if lost == "what was heard" and 1 in polled.records:
            raise Transient("the owner dies before it commits")
        await apply(self, polled)

    class Silent(type(site.sender)):  # type: ignore[misc]
        async def send(self, topic: str, partition: int, records: list[Record]) -> int:
            if lost == "the answer" and topic == site.topic(Topic.MERGE) and partition == 1:
                raise Transient("the owner dies before it sends")
            return int(await site.sender.send(topic, partition, records))

    monkeypatch.setattr(Merger, "_apply", die)
    async with site.segmenter(sender=Silent(site.kafka)) as running:
        await log.write(KIM, "$identify", T0 + 3 * DAY, identifies=ANON)

        async def laid_down() -> bool:
            running.check()
            hot = await state(site, ANON)
            return hot is not None and bool(hot.merged_into)

        await until(laid_down)
        kim = await state(site, KIM)
        assert kim is not None and kim.opens == 0
    monkeypatch.setattr(Merger, "_apply", apply)
    async with site.segmenter() as running:
        await opens(site, running, 3)
    assert (await site.tallies())["users:all"] == 1
    cold = await site.pool.fetchval("SELECT cold FROM segmenter.user_state WHERE user_id = $1", KIM)
    assert [one.user_id for one in decode_cold(cold).claims] == [ANON]
    assert len(await site.rows("SELECT 1 FROM segmenter.ledger WHERE kind = 'user_merged'")) == 2


async def test_what_a_new_log_does_not_have_is_told_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded broker forgets at each start; an answer it took with it was the only copy of a user's past."""
    log, apply = Log(site), Merger._apply
    await log.write(ANON, "Application Opened", T0)

    async def deaf(self: Merger, polled: Polled) -> None:
        if 1 in polled.records:
            raise Transient("not heard in time")
        await apply(self, polled)

    monkeypatch.setattr(Merger, "_apply", deaf)
    async with site.segmenter() as running:
        await log.write(KIM, "$identify", T0 + DAY, identifies=ANON)

        async def answered() -> bool:
            running.check()
            return bool(await told(site, 1))

        await until(answered)
    seq = await site.pool.fetchval("SELECT max(seq) FROM segmenter.outbox WHERE shard = 0 AND kind = 'merge_sent'")
    await site.pool.execute("UPDATE spine.shard_owner SET relayed = $1 WHERE service = 'segmenter' AND shard = 0", seq)
    async with transaction(site.pool) as connection:
        # the notifier has read all of it: what it has not read would be told again anyway
        await connection.execute(
            "INSERT INTO spine.shard_position (service, shard, source, log_id, last_gen, last_src)"
            " SELECT 'notifier', shard, $1, 'log-1', gen, next_seq - 1 FROM spine.shard_owner WHERE service = 'segmenter'",
            site.topic(Topic.FEED),
        )
        assert (await migrate.adopt_log(connection, SHARDS, "log-2")).replaced
    relayed = await site.pool.fetchval(
        "SELECT relayed FROM spine.shard_owner WHERE service = 'segmenter' AND shard = 0"
    )
    assert relayed == seq - 1
    assert await site.pool.fetchval(
        "SELECT relayed = next_seq - 1 FROM spine.shard_owner WHERE service = 'segmenter' AND shard = 1"
    ), "the question was heard"


async def test_nobody_falls_due_before_what_was_told_is_read(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner was away for a month; what came under the other id meanwhile waits in the topic, and time does not."""
    log, apply = Log(site), Merger._apply
    await log.write(ANON, "Application Opened", T0)
    await log.write(KIM, "$identify", T0 + 1, identifies=ANON)
    async with site.segmenter() as running:
        await opens(site, running, 1)
        monkeypatch.setattr(Merger, "read_up", lambda *_: False)
        await log.write(ANON, "Application Opened", T0 + 29 * DAY)
        await site.decide(TimeRecord(log.last[1], b"", 1, T0 + 40 * DAY), shard=1)
        await opens(site, running, 2)
        monkeypatch.undo()
        assert Merger._apply is apply

        async def swept() -> bool:
            running.check()
            return running.segmenter.shards[1].swept == T0 + 40 * DAY

        await until(swept)
    rows = await site.ledger(1)
    moves = [row["payload"] for row in rows if row["kind"] == "activity_changed" and row["cause_type"] == "tick"]
    assert not any("inactive" in one for one in moves), moves
