"""Whether the notifier's rows, made anew, are what the feed would have made, and whether it goes on from there."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from services.local import rebuilding
from services.local.program import LocalError
from services.notifier.domain.recipient import Recipient, decode_recipient, fold
from shared.contracts.events import Accepted, Context, Device
from shared.contracts.rules import EventTrigger
from shared.contracts.topics import Topic
from shared.data.ledger import LedgerRow
from shared.kafka.sender import Record, Sender
from shared.process.metrics import GAPS
from tests.support.people import BOSTON, CHICAGO, NEW_YORK, event, weather
from tests.support.spine import SHARDS, Notifying, Phones, Site, counted, until, users_of

ONE, TWO, THREE, LATER, NEXT, LAST = users_of(0, 6)
(ELSEWHERE,) = users_of(1, 1)


class Decided:
    """Numbers the shards' decisions as ingest does."""

    def __init__(self, site: Site) -> None:
        self.last = [-1] * SHARDS
        self._site = site

    async def event(self, user: str, name: str, *, shard: int = 0, **how: Any) -> None:
        src, prev = self.last[shard] + 1, self.last[shard]
        self.last[shard] = src
        decided: Accepted = event(name, self._site.clock.now_ms(), src=src, prev=prev, user=user, **how)
        await self._site.decide(decided, shard=shard)

    async def opens(self, user: str, *, shard: int = 0, **told: Any) -> None:
        """The first opening is worth a welcome."""
        device = Device(f"phone-{user}", "ios", f"token-{user}")
        await self.event(user, "Application Opened", shard=shard, context=Context(device, "en-US", **told))

    async def applied(self) -> None:
        for shard in range(SHARDS):
            await self._site.applied(shard, self.last[shard])


class Losing(Sender):
    """A broker that acknowledges feed records and loses those of shard 0."""

    def __init__(self, site: Site) -> None:
        self._feed, self._sender = site.topic(Topic.FEED), site.sender

    async def send(self, topic: str, partition: int, records: Sequence[Record]) -> int:
        if (topic, partition) == (self._feed, 0):
            return 0
        return await self._sender.send(topic, partition, records)


async def _recipients(site: Site) -> dict[str, Recipient]:
    rows = await site.rows("SELECT user_id, body FROM notifier.recipient")
    return {row["user_id"]: decode_recipient(row["body"]) for row in rows}


async def _folded(site: Site) -> dict[str, Recipient]:
    """What a notifier would know that had read every row of the ledger."""
    known: dict[str, Recipient] = {}
    for shard in range(SHARDS):
        for row in await site.ledger(shard):
            kept = LedgerRow(**{**row, "payload": json.loads(row["payload"])}).feed_row()
            after = fold(known.get(kept.user_id), kept)
            assert after is not None
            known[kept.user_id] = after
    return known


async def _heard(site: Site) -> bool:
    """Whether the notifier has applied all that the segmenter wrote, and every message has come to its end."""
    behind = await site.rows(
        "SELECT o.shard FROM spine.shard_owner o LEFT JOIN spine.shard_position p"
        " ON p.service = 'notifier' AND p.shard = o.shard"
        " WHERE o.service = 'segmenter' AND (p.last_gen, p.last_src) IS DISTINCT FROM (o.gen, o.next_seq - 1)"
    )
    waiting = await site.rows("SELECT 1 FROM notifier.message WHERE state IN ('intent', 'attempted')")
    return not behind and not waiting


@asynccontextmanager
async def _both(site: Site, phones: Phones) -> AsyncIterator[Notifying]:
    async with site.segmenter(), site.notifier(phones) as running:
        yield running


async def _rebuilt(site: Site, dsn: str) -> list[str]:
    said: list[str] = []
    await rebuilding.rebuild(dsn, site.log, site.names, range(SHARDS), said.append)
    return said


async def _life(decided: Decided) -> None:
    """People with phones, cities and opinions."""
    await decided.opens(ONE, timezone="America/Chicago")
    await decided.event(ONE, "Default City Set", city=CHICAGO)
    await decided.event(ONE, "City Added", city=NEW_YORK)
    await decided.event(ONE, "City Added", city=BOSTON)
    await decided.event(ONE, "City Searched", city=BOSTON)
    await decided.opens(TWO)
    await decided.event(TWO, "Consent Preference Updated", properties={"categories": {"push": True}})
    tablet = Context(Device("tablet", "android", "token-tablet"))
    await decided.event(TWO, "Application Opened", context=tablet)
    await decided.event(THREE, "Application Backgrounded")
    await decided.opens(ELSEWHERE, shard=1)
    await decided.applied()


async def test_recipients_behind_a_gap_are_made_anew_and_the_next_change_pushes_once(site: Site, postgres: str) -> None:
    """What the feed lost for good are a withdrawn consent, a moved home and a new phone."""
    decided, phones = Decided(site), Phones()
    async with _both(site, phones):
        await _life(decided)
        await until(lambda: _heard(site))
    assert await _recipients(site) == await _folded(site)
    before = len(phones.pushes)
    assert before == 3

    async with site.segmenter(sender=Losing(site)):
        await decided.event(ONE, "Default City Set", city=BOSTON)
        await decided.event(ONE, "City Removed", city=NEW_YORK)
        await decided.event(TWO, "Consent Preference Updated", properties={"categories": {"push": False}})
        await decided.opens(THREE)
        await decided.applied()
        await until(lambda: _relayed(site))
    expected = await _folded(site)
    await site.pool.execute("TRUNCATE segmenter.outbox")  # as a week later
    await site.pool.execute("DELETE FROM notifier.recipient WHERE shard = 0")

    with counted(GAPS, "notifier") as gaps:
        async with _both(site, phones) as running:
            await decided.opens(LATER)
            await decided.applied()
            await asyncio.sleep(0.3)
            assert not await _heard(site)
            said = await _rebuilt(site, postgres)
            await until(lambda: _heard(site))
            found = await _recipients(site)
            assert {user: found[user] for user in expected} == expected
            assert set(found) == {*expected, LATER}
            assert any("passed over (1 of 2)" in line for line in said), said
            assert len(phones.pushes) == before

            await decided.opens(NEXT)
            await decided.event(TWO, "City Added", city=BOSTON)
            await decided.applied()
            await until(lambda: _heard(site))
            assert [p.token for p in phones.pushes[before:]] == [f"token-{NEXT}"]

            again = await _recipients(site)
            await _rebuilt(site, postgres)
            assert await _recipients(site) == again
            await decided.opens(LAST)
            await decided.applied()
            await until(lambda: _heard(site))
            running.check()
    assert gaps[0] > 0
    assert [p.token for p in phones.pushes[before:]] == [f"token-{NEXT}", f"token-{LAST}"]


async def _relayed(site: Site) -> bool:
    return not await site.rows("SELECT 1 FROM spine.shard_owner WHERE service = 'segmenter' AND relayed < next_seq - 1")


async def test_a_notifier_that_lost_everything_tells_nobody_twice(any_site: Site, postgres: str) -> None:
    """Recipients come from the segmenter, messages with their outcomes from the topic, numbers behind the topic's."""
    site, decided, phones = any_site, Decided(any_site), Phones()
    # what waits has no outcome yet, so no topic has it
    campaigns = [c for c in weather().campaigns if not isinstance(c.trigger, EventTrigger)]
    campaigns = [msgspec.structs.replace(c, holdout_percent=100.0 * (c.id == "win_back")) for c in campaigns]
    await site.install(msgspec.structs.replace(weather(), campaigns=campaigns))
    messages = (
        "SELECT message_id, shard, user_id, campaign, variant, state, reason, provider FROM notifier.message ORDER BY 1"
    )
    outcomes = "SELECT * FROM notifier.outcome ORDER BY shard, seq"
    async with _both(site, phones):
        await _life(decided)
        quiet = Context(Device("phone", "ios", "never"))
        await decided.event(LATER, "Application Backgrounded", context=quiet)
        await decided.applied()
        await until(lambda: _heard(site))
        recipients = await _recipients(site)
        sent = [p.message_id for p in phones.pushes if p.token == f"token-{ONE}"]
        await decided.event(ONE, "Push Notification Tapped", properties={"message_id": sent[0]})
        await decided.applied()
        await until(lambda: _heard(site))
    before, told = await site.rows(messages), await site.rows(outcomes)
    assert {m["state"] for m in before} == {"sent", "suppressed", "held_out"}
    assert [o["outcome"] for o in told].count("opened") == 1
    pushes = len(phones.pushes)
    await site.pool.execute("TRUNCATE notifier.recipient, notifier.message, notifier.outcome")
    await site.pool.execute("DELETE FROM spine.shard_owner WHERE service = 'notifier'")
    await site.pool.execute("DELETE FROM spine.shard_position WHERE service = 'notifier'")

    await _rebuilt(site, postgres)
    assert await _recipients(site) == recipients
    assert await site.rows(messages) == before
    assert await site.rows(outcomes) == told
    (tapped,) = await site.rows("SELECT message_id FROM notifier.message WHERE opened_at IS NOT NULL")
    assert tapped["message_id"] == sent[0]
    # even the whole feed read again tells nobody twice
    await site.pool.execute(
        "UPDATE spine.shard_position SET next_offset = 0, last_offset = -1, last_src = -1, last_gen = 0 WHERE service = 'notifier'"
    )
    async with _both(site, phones):
        await decided.opens(NEXT)
        await decided.applied()
        await until(lambda: _heard(site))
    assert [p.token for p in phones.pushes[pushes:]] == [f"token-{NEXT}"]
    assert max(Counter(p.message_id for p in phones.pushes).values()) == 1
    (new,) = [o for o in await site.rows(outcomes) if o not in told]
    assert (new["gen"], new["seq"]) == (2, 1 + max(o["seq"] for o in told if o["shard"] == 0))


async def test_a_database_that_is_older_than_the_feed_is_refused(site: Site, postgres: str) -> None:
    """Its users are older than what the notifier would follow from."""
    decided = Decided(site)
    async with site.segmenter():
        await decided.opens(ONE)
        await decided.applied()
        await until(lambda: _relayed(site))
    await site.pool.execute("UPDATE spine.shard_owner SET next_seq = 2 WHERE service = 'segmenter' AND shard = 0")
    with pytest.raises(LocalError, match="perennial restore"):
        await _rebuilt(site, postgres)
