"""Ingest's output is its commit: it goes on where its own topic ends, and never over a log it does not know."""

from __future__ import annotations

import asyncio
import json

import pytest

from services.ingest.consumer.pipeline import Pipeline, _Partition
from services.local.topics import admin
from shared.contracts.events import Accepted, Moved, Rejected, TimeRecord
from shared.contracts.identifiers import record_digest, shard_of
from shared.contracts.topics import Topic
from shared.kafka.sender import Record
from shared.process.errors import LogReplaced
from shared.process.http import Health
from shared.process.metrics import INGEST_RESUMES
from tests.support.spine import SHARDS, Ingesting, Site, counted, until, users_of


async def _decided(site: Site, shard: int, count: int) -> list[Accepted | Rejected | Moved]:
    async def enough() -> list[Accepted | Rejected | Moved]:
        found = await site.decided(shard)
        return found if len(found) >= count else []

    found: list[Accepted | Rejected | Moved] = await until(enough)
    return found


async def _time(site: Site, shard: int) -> list[TimeRecord]:
    return [d for d in await site.decisions(shard) if isinstance(d, TimeRecord)]


async def test_every_raw_record_gets_one_decision_that_names_the_one_before(any_site: Site) -> None:
    site = any_site
    user = users_of(0, 1)[0]
    await site.post(user, "Application Opened")
    await site.produce(Topic.RAW, 0, Record(user.encode(), b"{"))
    await site.post(user, "City Added", properties={"city": "New York", "state": "NY"})
    async with site.ingest():
        found = await _decided(site, 0, 3)
    assert [(type(d).__name__, d.src, d.prev) for d in found] == [
        ("Accepted", 0, -1), ("Rejected", 1, 0), ("Accepted", 2, 1),
    ]  # fmt: skip
    raw = await site.records(Topic.RAW, 0)
    assert [d.digest for d in found] == [record_digest(r.key, r.value) for r in raw]


async def test_it_resumes_from_its_own_output(any_site: Site) -> None:
    """There is no other memory: a second process reads the last decision, and decides the next record once."""
    site = any_site
    user = users_of(0, 1)[0]
    for _ in range(3):
        await site.post(user, "Application Opened")
    async with site.ingest(batch=2):
        await _decided(site, 0, 3)
    for _ in range(2):
        await site.post(user, "Screen Viewed")
    async with site.ingest():
        found = await _decided(site, 0, 5)
    assert [(d.src, getattr(d, "prev", None)) for d in found] == [(n, n - 1) for n in range(5)]


async def test_a_misplaced_record_moves_to_its_users_partition_once(any_site: Site) -> None:
    """A producer with another partitioner: the event is counted once, where its user lives."""
    site = any_site
    user = users_of(1, 1)[0]
    assert shard_of(user, SHARDS) == 1
    await site.post(user, "Application Opened", partition=0, messageId="m-1")
    async with site.ingest():
        (moved,) = await _decided(site, 0, 1)
        (taken,) = await _decided(site, 1, 1)
    assert isinstance(moved, Moved)
    assert moved.to == 1
    assert isinstance(taken, Accepted)
    assert (taken.user_id, taken.message_id) == (user, "m-1")


async def test_another_log_under_the_same_name_is_refused(any_site: Site) -> None:
    """A topic deleted and made again holds other records at the same offsets: going on would skip or double them."""
    site = any_site
    user = users_of(0, 1)[0]
    await site.post(user, "Application Opened", messageId="before")
    async with site.ingest():
        await _decided(site, 0, 1)
    await _recreate(site)
    await site.post(user, "Application Opened", messageId="after")
    async with site.ingest() as running:
        with pytest.raises(LogReplaced, match="another record at offset 0"):
            await running.died()
    assert len(await site.decided(0)) == 1


async def test_a_log_that_ends_before_what_was_decided_is_refused(site: Site) -> None:
    user = users_of(0, 1)[0]
    await site.post(user, "Application Opened")
    async with site.ingest():
        await _decided(site, 0, 1)
    await _recreate(site)
    async with site.ingest() as running:
        with pytest.raises(LogReplaced, match="ends before offset 0"):
            await running.died()


async def _recreate(site: Site) -> None:
    """Delete the raw topic and make it again; whoever was connected must look anew."""
    from aiokafka.admin import NewTopic

    name = site.topic(Topic.RAW)
    async with admin(site.kafka) as client:
        await client.delete_topics([name])

        async def made() -> bool:
            answer = await client.create_topics([NewTopic(name, SHARDS, 1)])
            return all(refusal[1] == 0 for refusal in answer.topic_errors)

        await until(made)
    await site.sender.stop()
    await site.sender.start()
    await site.log.stop()
    await site.log.start()


async def test_time_is_told_only_once_everything_was_read(site: Site) -> None:
    """Nobody may be called inactive while an event of theirs still waits in raw."""
    user = users_of(0, 1)[0]
    began = site.clock.now_ms()
    for n in range(400):
        await site.post(user, "Application Opened", messageId=f"m-{n}")
    # many small answers of the broker, so that several come between a clock value and the end
    async with site.ingest(time_seconds=0.001, batch=20, fetch_bytes=3000):

        async def told() -> list[TimeRecord]:
            return [t for t in await _time(site, 0) if t.src == 399]

        last = (await until(told))[-1]
    for record in await _time(site, 0):
        # what was said along the way was said at an end that had been reached
        assert record.as_of == 0 or record.src == 399
    raw = await site.records(Topic.RAW, 0)
    assert began <= last.as_of <= site.clock.now_ms()
    assert last.digest == record_digest(raw[399].key, raw[399].value)


@pytest.mark.parametrize(
    ("answers", "told_at"),
    [
        ([(1, True)] * 5, None),
        ([(1, True), (2, True), (2, True)], None),
        ([(1, True), (2, True), (3, True)], 2),
        ([(1, False), (2, False), (3, False), (3, False), (4, True)], 4),
        ([(1, False), (2, True), (3, False), (4, False)], None),
    ],
)
async def test_a_clock_value_is_proven_by_answers_that_came_after_it(
    answers: list[tuple[int, bool]], told_at: int | None
) -> None:
    """The first answer may belong to a fetch sent before the clock was read; the second does not, and it counts only
    if nothing more is there."""

    class Scripted:
        def at_end(self, shard: int, position: int) -> tuple[bool, int]:
            mark, end = answers[step]
            return end, mark

        def held_seconds(self) -> float:
            return 0.0

    class Ticking:
        def now_ms(self) -> int:
            return 1000 + step

    pipeline = Pipeline(
        consumer=Scripted(), reader=None, sender=None, clock=Ticking(), health=Health(), raw_topic="r",  # type: ignore[arg-type]
        events_topic="e", batch_records=1, time_seconds=0.0,
    )  # fmt: skip
    standing = _Partition(5, b"d", 6)
    found: list[int | None] = []
    for step in range(len(answers)):  # noqa: B007 - the stand-ins look at it
        found.append(pipeline._reached(0, standing, 1.0))  # noqa: PERF401 - one step after the other
    # the value is that of the clock when the first answer was looked at, however long the proof took
    assert found == [1000 if n == told_at else None for n in range(len(answers))]


async def test_time_stands_still_while_the_broker_holds_unread_records(site: Site) -> None:
    """A clock value counts only if a fetch that began after it found the end."""
    user = users_of(0, 1)[0]
    async with site.ingest(time_seconds=0.02) as running:
        await until(lambda: _time(site, 0))
        before = site.clock.now_ms()
        await site.post(user, "Application Opened", at=before)
        (taken,) = await _decided(site, 0, 1)

        async def later() -> list[TimeRecord]:
            return [t for t in await _time(site, 0) if t.as_of > before]

        await until(later)
        running.check()
    records = await site.decisions(0)
    at = records.index(taken)
    assert all(r.as_of <= before for r in records[:at] if isinstance(r, TimeRecord) and r.src == -1)


async def test_new_rules_are_told_to_idle_partitions_too(site: Site) -> None:
    """A shard without events would otherwise never enter the new version."""
    async with site.ingest(time_seconds=3600) as running:
        await until(lambda: _time(site, 1))
        await asyncio.sleep(0.3)
        running.pipeline.use_rules(2, running.pipeline._intake)  # type: ignore[arg-type]

        async def told() -> bool:
            return any(t.rules == 2 for t in await _time(site, 0)) and any(t.rules == 2 for t in await _time(site, 1))

        await until(told)


async def test_rewind_decides_again_and_resuming_goes_on_from_there(site: Site) -> None:
    """`perennial repair`: what readers miss is decided once more, and the copies carry the same numbers."""
    user = users_of(0, 1)[0]
    for n in range(6):
        await site.post(user, "Application Opened", messageId=f"m-{n}")
    async with site.ingest() as running:
        first = await _decided(site, 0, 6)
        assert running.pipeline.rewind(0, 2)
        assert not running.pipeline.rewind(7, 2)
        found = await _decided(site, 0, 9)
        await asyncio.sleep(0.3)
        running.check()
    assert [d.src for d in found] == [0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert found[6:] == first[3:]
    async with site.ingest() as again:
        await site.post(user, "Application Opened", messageId="m-6")
        assert [d.src for d in await _decided(site, 0, 10)][9:] == [6]
        again.check()


async def test_rules_that_change_at_a_rewind_do_not_make_the_log_look_foreign(site: Site) -> None:
    """The time record that announces them must prove the record it names, or the next start refuses the log."""
    user = users_of(0, 1)[0]
    for n in range(4):
        await site.post(user, "Application Opened", messageId=f"m-{n}")
    async with site.ingest() as running:
        await _decided(site, 0, 4)
        pipeline = running.pipeline
        await _stopped(running)
        # rewound, and the fetch that follows finds nothing yet: only then is the time told
        assert pipeline.rewind(0, 1)
        pipeline._rewind()
        pipeline.use_rules(2, pipeline._intake)  # type: ignore[arg-type]
        await pipeline._tell_time()
    async with site.ingest(version=2) as again:
        await site.post(user, "Application Opened", messageId="m-4")

        async def decided() -> bool:
            again.check()
            return any(d.src == 4 for d in await site.decided(0))

        await until(decided)


async def _stopped(running: Ingesting) -> None:
    await running.stop()
    running.tasks.clear()


async def test_two_writers_number_alike(site: Site) -> None:
    """A zombie writes what its successor writes too: same `src` and `prev`, so that a reader drops the second."""
    user = users_of(0, 1)[0]
    for n in range(5):
        await site.post(user, "Application Opened", messageId=f"m-{n}")
    with counted(INGEST_RESUMES) as resumes:
        async with site.ingest() as one:
            await _decided(site, 0, 5)
            pipeline = one.pipeline
            assert pipeline.rewind(0, -1)
            found = await _decided(site, 0, 10)
    assert [(d.src, getattr(d, "prev", 0)) for d in found[:5]] == [(d.src, getattr(d, "prev", 0)) for d in found[5:]]
    assert resumes[0] >= SHARDS


async def test_an_id_no_database_can_hold_is_refused_under_another(site: Site) -> None:
    """Any back end may write to raw. A NUL in its key stopped the shard for good, one service further."""
    for key in (b"a\x00b", b"k" * 5000):
        await site.produce(Topic.RAW, 0, Record(key, b"{", [("message_id", b"m\x00")]))
    await site.post(users_of(0, 1)[0], "Application Opened")
    async with site.ingest(), site.segmenter() as running:
        await site.applied(0, 2)
        running.check()
    dead = [row for row in await site.ledger(0) if row["kind"] == "dead_letter"]
    assert [(row["user_id"], json.loads(row["payload"])["reason"]) for row in dead] == [("", "malformed_json")] * 2
