"""Input as it should not be: posted three times over, put into the wrong partition, or poisonous to our own code."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import confluent_kafka
import pytest

from services.local.program import Program
from tests.component.test_gateway_hostile import CASES, body_of
from tests.support.installation import Rig, eventually
from tests.support.prometheus import JOBS
from tests.support.traffic import Traffic

_LETTERS = "SELECT count(*) FROM segmenter.ledger WHERE kind = 'dead_letter'"
_LAG = "perennial_input_lag_records"
_HOSTILE_SECONDS = 3

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_ten_minutes_of_requests_posted_three_times_over_while_owners_move(rig: Rig) -> None:
    """A second ingest and a second segmenter take their shares the first time, are killed in the middle of the second, and
    are missed during the third. Each event is known for a duplicate, also those that left their user's ring, and
    nothing else comes of it."""
    now, traffic = time.time(), Traffic(2001, users=20)
    requests = [[traffic.event(now - 600 + 15 * n) for _ in range(30)] for n in range(40)]

    async def post(midway: Sequence[Program] = ()) -> None:
        for n, request in enumerate(requests):
            if n == len(requests) // 2:
                for program in midway:
                    program.kill()
            assert await rig.post(request) == 1

    await post()
    before, state = await rig.equal(), await _known(rig)
    assert len({user.split("~")[0] for user in state}) == 20
    others = {service: await rig.second(service) for service in ("ingest", "segmenter")}
    joining = asyncio.create_task(post())
    for service, other in others.items():
        await rig.owned(service, other.env["URL"], rig.status[service])
    await joining
    await post(midway=list(others.values()))
    await post()
    after = await rig.equal()
    more = {name: after[name] - before[name] for name in ("raw", "accepted", "rejected", "duplicates")}
    assert more["raw"] == 3 * 30 * len(requests) == more["accepted"] + more["rejected"]
    assert more["duplicates"] == more["accepted"] > 3000
    assert await _known(rig) == state


async def _known(rig: Rig) -> dict[str, object]:
    """All that is held of the users of the test above, and the last number of their history and messages."""
    query = """
        SELECT u.user_id, u.hot, u.cold, (SELECT array_agg(message_id ORDER BY message_id) FROM notifier.message m
            WHERE m.shard = u.shard AND m.user_id = u.user_id) AS messages,
          (SELECT max(seq) FROM segmenter.ledger l
            WHERE l.shard = u.shard AND l.user_id = u.user_id AND kind <> 'dead_letter') AS seq
        FROM segmenter.user_state u WHERE starts_with(u.user_id, 'u2001-')
    """
    async with rig.database() as connection:
        return {row["user_id"]: tuple(row) for row in await connection.fetch(query)}


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
    """Those of the data file that are answered 200, again and again beside ordinary traffic: the oracle finds every event
    where it belongs, ingest and segmenter never fall two seconds behind, and nobody is named to those who look."""
    taken = [case for case in CASES if case["status"] == 200]
    rejected = sum(len(case["rejected"]) for case in taken)
    lags: list[float] = []

    async def look() -> None:
        while True:
            lags.append(sum([await rig.metric(rig.status[one], _LAG, service=one) for one in ("ingest", "segmenter")]))
            await asyncio.sleep(0.1)

    async with rig.database() as connection:
        before, rounds, traffic = await connection.fetchval(_LETTERS), 0, Traffic(2005, users=60)
        looking, began = asyncio.create_task(look()), time.monotonic()
        async with traffic.during(rig):
            await rig.post([{"type": "track", "event": "Screen Viewed"} | person for person in PERSONS])
            while time.monotonic() - began < _HOSTILE_SECONDS:
                for case in taken:
                    assert await rig.post_body(case["path"], body_of(case), case.get("headers", {})) == 200, case[
                        "name"
                    ]
                rounds += 1
        took = time.monotonic() - began
        looking.cancel()
        await rig.equal()
        assert await connection.fetchval(_LETTERS) - before >= rounds * rejected > 50
    each_second = (traffic.posted + rounds * len(taken)) / took
    print(f"{rounds} times {len(taken)} bodies, {each_second:.0f} events a second, lag at most {max(lags):.0f}")
    assert len(lags) > took and max(lags) < 2 * each_second
    said = await _said(rig)
    assert said.count("pii:") >= len(PERSONS)
    assert not [secret for secret in SECRETS if secret in said]


SECRETS = ("ann.lee@example.com", "+1 415 555 2671", "06 12 34 56 78")
PERSONS: list[dict[str, Any]] = [
    {"userId": SECRETS[0], "messageId": "pii-1"},
    {"userId": "pii-2", "properties": {"name": f"call {SECRETS[1]}"}, "traits": {"type": SECRETS[1]}},
    {"userId": "pii-4", "context": {"campaign": {"source": SECRETS[0]}}, "event": f"Mail to {SECRETS[2]}"},
    {"userId": f"{SECRETS[2]} Ann", "properties": {"name": f"mail to {SECRETS[0]}", SECRETS[0]: 1}},
]


async def _said(rig: Rig) -> str:
    """What people get to see: logs, metrics, and dead letters listed, counted and shown."""
    pages = [rig.log(name) for name in JOBS]
    pages += [await rig.page(f"{rig.status[name]}/metrics") for name in JOBS]
    letters = f"{rig.status['ingest']}/v1/dead-letters"
    listed = await rig.page(f"{letters}?reason=pii&limit=1000")
    pages += [listed, await rig.page(f"{letters}/stats"), await rig.page(f"{letters}/replays")]
    addresses = [item["raw"] for item in json.loads(listed)["items"]]
    pages += [await rig.page(f"{letters}/{raw['partition']}/{raw['offset']}") for raw in addresses]
    return "\n".join(pages)


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
