"""Input as it should not be: posted three times over, put into the wrong partition, or poisonous to our own code."""

from __future__ import annotations

import asyncio
import json
import time

import confluent_kafka
import pytest

from tests.component.test_gateway_hostile import CASES, body_of
from tests.support.installation import Rig, eventually
from tests.support.traffic import Traffic

_LETTERS = "SELECT count(*) FROM segmenter.ledger WHERE kind = 'dead_letter'"

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_what_is_posted_three_times_counts_once(rig: Rig) -> None:
    before = (await rig.equal())["duplicates"]
    traffic = Traffic(2001, users=80)
    await traffic.run(rig, 4, rate=150, times=3)
    counts = await rig.equal()
    assert counts["duplicates"] - before > traffic.posted * 0.55, counts


async def test_a_foreign_producer_with_another_partitioner_is_put_right(rig: Rig) -> None:
    """librdkafka's default partitioner agrees with ours for few keys; every event is applied once all the same."""
    before = (await rig.equal())["moved"]
    topic = rig.status["prefix"] + "app.events.raw.v1"
    producer = confluent_kafka.Producer({"bootstrap.servers": rig.status["kafka"], "linger.ms": 5})
    failed: list[object] = []
    traffic = Traffic(2002, users=60)

    def delivered(error: object, _: object) -> None:
        if error is not None:
            failed.append(error)

    def produce() -> None:
        for _ in range(400):
            event = traffic.event(time.time())
            user = event.get("userId") or event.get("anonymousId") or ""
            producer.produce(topic, json.dumps(event).encode(), user.encode(), on_delivery=delivered)
            producer.poll(0)
        assert producer.flush(20) == 0

    await asyncio.to_thread(produce)
    await Traffic(2003, users=60).run(rig, 2)
    assert not failed
    counts = await rig.equal()
    assert counts["moved"] - before > 200, counts


async def test_bodies_nobody_should_post_leave_dead_letters_and_nothing_else(rig: Rig) -> None:
    """Those of the data file that are answered 200, beside ordinary traffic: the oracle finds every event where it belongs."""
    traffic = asyncio.create_task(Traffic(2005, users=60).run(rig, 3))
    taken = [case for case in CASES if case["status"] == 200]
    rejected = sum(len(case["rejected"]) for case in taken)
    async with rig.database() as connection:
        before = await connection.fetchval(_LETTERS)
        for case in taken:
            assert await rig.post_body(case["path"], body_of(case), case.get("headers", {})) == 200, case["name"]
        await traffic
        await rig.equal()
        assert await connection.fetchval(_LETTERS) - before >= rejected > 50


async def test_a_poison_record_is_set_aside_and_the_rest_goes_on(rig: Rig) -> None:
    """A bug in `decide` for events of one name: each of them ends as a dead letter with its address."""
    await rig.restart("segmenter", PERENNIAL_SEGMENTER_FAULT="Poisoned Event")
    load = asyncio.create_task(Traffic(2004, users=80).run(rig, 4, rate=200))
    poison = [
        {"type": "track", "event": "Poisoned Event", "userId": f"u2004-{n}", "messageId": f"poison-{n}"} for n in (1, 2)
    ]
    await asyncio.sleep(1)
    await rig.post(poison)
    await load
    async with rig.database() as connection:

        async def set_aside() -> str:
            found = await connection.fetchval(
                "SELECT count(*) FROM segmenter.ledger WHERE kind = 'dead_letter' AND payload->>'reason' LIKE 'bug:%'"
            )
            return "" if found == len(poison) else f"{found} records were set aside"

        await eventually(set_aside, 40)
    assert await rig.metric(rig.status["segmenter"], "perennial_bugs_total", service="segmenter") >= 3
    await rig.equal()
    await rig.restart("segmenter")
