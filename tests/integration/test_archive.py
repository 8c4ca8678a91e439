"""Whether users made anew from archive and topic are those that were lost, to the last row and number."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from services.archive.folder import Broken, Folder
from services.local import refolding, scrubbing, verifying
from services.local.program import LocalError
from services.local.topics import admin, ensure_topics
from services.segmenter.domain.state import decode_hot
from shared.contracts.events import Context, Device, Erase, Rejected, TimeRecord
from shared.contracts.topics import Topic
from shared.data.db import connect_pool
from shared.kafka.sender import Record
from tests.support.archiving import archive, state
from tests.support.people import BOSTON, CHICAGO, DAY, HOUR, NEW_YORK, T0, event, with_days
from tests.support.ports import free_port
from tests.support.spine import SHARDS, Site, until, users_of

ROOT = Path(__file__).resolve().parents[2]


class Life:
    """What was decided of two shards over two months, numbered as ingest does; `rules` is what it is decided under."""

    def __init__(self, site: Site) -> None:
        self.site, self.rules = site, 1
        self.last = [-1] * SHARDS
        self.pending: defaultdict[int, list[Any]] = defaultdict(list)
        self.users = {shard: users_of(shard, 12) for shard in range(SHARDS)}

    def tell(self, shard: int, user: str, name: str, at: int, **how: Any) -> None:
        src, prev = self.last[shard] + 1, self.last[shard]
        self.last[shard] = src
        self.pending[shard].append(event(name, at, src=src, prev=prev, user=user, rules=self.rules, **how))

    def erase(self, shard: int, user: str, at: int) -> None:
        src, prev = self.last[shard] + 1, self.last[shard]
        self.last[shard] = src
        self.pending[shard].append(Erase(src, prev, b"", self.rules, user, f"e-{src}-{shard}", at))

    def refuse(self, shard: int, user: str, at: int) -> None:
        src, prev = self.last[shard] + 1, self.last[shard]
        self.last[shard] = src
        self.pending[shard].append(Rejected(src, prev, b"", self.rules, user, f"m-{src}", "too_old", at, "app"))

    async def passes(self, to: int) -> None:
        """What was told is applied, time has come to `to`, and whoever fell due by then was brought."""
        for shard in range(SHARDS):
            await self.site.decide(*self.pending.pop(shard, []), shard=shard)
        for moment in (to - 1, to):  # users brought to new rules may fall due behind a sweep that is over
            for shard in range(SHARDS):
                await self.site.decide(TimeRecord(self.last[shard], b"", self.rules, moment), shard=shard)

            async def walked(moment: int = moment) -> bool:
                times = await self.site.rows("SELECT watermark, rules_cursor FROM segmenter.shard_time")
                return [(row["watermark"], row["rules_cursor"]) for row in times] == [(moment, None)] * SHARDS

            await until(walked)

        async def swept() -> bool:
            users = await self.site.rows("SELECT hot FROM segmenter.user_state")
            return not any(0 <= decode_hot(row["hot"]).due_at <= to for row in users)

        await until(swept)

    async def lived(self) -> None:
        """Everything a refold could get wrong: silences, orders of time and event, two rules versions, ids that are
        told again after they left the ring, repeats by a second writer."""
        for shard, users in self.users.items():
            for n, user in enumerate(users):
                at = T0 + n * HOUR
                phone = Context(Device(f"phone-{user}", "ios", f"token-{user}"), "en-US", "America/Chicago", "1.2")
                self.tell(shard, user, "Application Opened", at, context=phone)
                self.tell(shard, user, "$screen", at + 1)
                self.tell(shard, user, "City Searched", at + 2, city=(NEW_YORK, CHICAGO, BOSTON)[n % 3])
                self.tell(shard, user, "City Added", at + 3, city=BOSTON)
            self.refuse(shard, users[0], T0 + 1)
        await self.passes(T0 + DAY)
        for shard, users in self.users.items():
            for n in range(45):
                self.tell(shard, users[0], "$screen", T0 + DAY + n, message_id=f"m-ring-{n}")
            for n in range(45):  # most of them known only from where ids go that left the ring
                self.tell(shard, users[0], "$screen", T0 + DAY + n, message_id=f"m-ring-{n}")
        await self.passes(T0 + 40 * DAY)
        for shard, users in self.users.items():
            # received before the tick that was recorded already: it is judged as of that tick
            self.tell(shard, users[1], "City Searched", T0 + 2 * DAY, city=CHICAGO, mode="replay")
            self.tell(shard, users[2], "Application Opened", T0 + 41 * DAY)
            self.erase(shard, users[11], T0 + 41 * DAY)
            self.tell(shard, users[11], "Application Opened", T0 + 41 * DAY)  # too late: nothing is taken in
        self.rules = 2
        for shard, users in self.users.items():
            self.tell(shard, users[3], "Application Opened", T0 + 42 * DAY)
            self.tell(shard, users[4], "City Removed", T0 + 42 * DAY + 1, city=BOSTON)
        await self.passes(T0 + 44 * DAY)
        for shard, users in self.users.items():
            self.tell(shard, users[5], "Application Opened", T0 + 45 * DAY)
            again = event("Application Opened", T0, src=3, prev=2, user=users[7])
            self.pending[shard].append(again)  # another writer decides an old record again, and otherwise
        await self.passes(T0 + 70 * DAY)


async def _lived(site: Site) -> None:
    await site.install(with_days(at_risk=3, inactive=9, lapsed=20))
    async with site.segmenter() as running:
        await Life(site).lived()
        await until(lambda: _relayed(site))
        running.check()


async def _relayed(site: Site) -> bool:
    return not await site.rows("SELECT 1 FROM spine.shard_owner WHERE service = 'segmenter' AND relayed < next_seq - 1")


async def _rebuilt(site: Site, dsn: str, folder: Folder | None, **how: Any) -> tuple[list[str], list[Any]]:
    said: list[str] = []
    found = await refolding.rebuild(dsn, site.kafka, site.log, site.names, range(SHARDS), folder, said.append, **how)
    return said, found


async def _told(site: Site) -> dict[str, list[Any]]:
    """The history of each user, without numbers, and without what noticed a moment that had passed: whether the sweep or
    the user's next event did, makes no difference."""
    rows = await site.rows(
        "SELECT user_id, kind, payload::text, cause_type, cause_id, occurred_at, CASE cause_type WHEN 'event' THEN src END"
        " FROM segmenter.ledger ORDER BY shard, seq"
    )
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for row in rows:
        found[row.pop("user_id")].append(row)
    return dict(found)


async def _numbers(site: Site) -> list[dict[str, Any]]:
    return await site.rows(
        "SELECT shard, gen, next_seq, relayed, last_change_seq, last_dead_seq FROM spine.shard_owner"
        " WHERE service = 'segmenter' ORDER BY shard"
    )


_STATE_TABLES = "segmenter.suppressed, segmenter.user_state, segmenter.dedup_spill, segmenter.cohort_member, segmenter.tally, segmenter.tally_day"
_EMPTIED = f"TRUNCATE {_STATE_TABLES}, segmenter.shard_time"
_LOST = f"TRUNCATE {_STATE_TABLES}, segmenter.shard_time, segmenter.ledger, segmenter.outbox, segmenter.tick_log RESTART IDENTITY"


async def test_lost_users_are_made_anew_row_by_row(site: Site, postgres: str, tmp_path: Path) -> None:
    """First with their history left, then with nothing left at all, not even the topic."""
    await _lived(site)
    folder = await archive(site, tmp_path / "archive")
    assert all(len(folder.files(site.topic(Topic.EVENTS), shard)) > 3 for shard in range(SHARDS))
    before, told, numbers = await state(site), await _told(site), await _numbers(site)
    asked = await site.rows("SELECT * FROM control.erasure ORDER BY erasure_id")
    assert {row["rules_version"] for row in before["users"]} == {2} and len(before["ticks"]) >= 2 * 4
    assert {json.loads(r["payload"]).get("to") for rows in told.values() for r in rows if r["kind"] == "activity_changed"} >= {
        "new", "inactive", "lapsed", "reactivated",
    }  # fmt: skip

    said, found = await _rebuilt(site, postgres, folder, check=True)
    assert not any(found) and [f.users for f in found] == [11, 11], said
    user = before["users"][0]["user_id"]
    await site.pool.execute("DELETE FROM segmenter.user_state WHERE user_id = $1", user)
    said, found = await _rebuilt(site, postgres, folder, check=True)
    assert [f.otherwise for f in found] == [1, 0] and user in said[0], said
    assert len(await site.rows("SELECT 1 FROM segmenter.user_state")) == 21  # it was only looked at

    await site.pool.execute(_EMPTIED)
    await _rebuilt(site, postgres, folder)
    assert await state(site) == before
    assert (await _numbers(site), await _told(site)) == (numbers, told)

    feed = [await site.fed(shard) for shard in range(SHARDS)]
    await _emptied_topic(site)
    await site.pool.execute(_LOST)
    with pytest.raises(LocalError, match="archive and topic lead to decision -1"):
        await _rebuilt(site, postgres, None)
    await _rebuilt(site, postgres, folder)
    after = await state(site)
    entered = {
        name: [row.pop("entered_seq") for row in found["cohorts"]]
        for name, found in (("before", before), ("after", after))
    }
    assert after == before and 0 not in entered["after"]
    erased = {users[11] for users in (users_of(shard, 12) for shard in range(SHARDS))}
    now_told = await _told(site)
    assert erased <= told.keys() and not erased & now_told.keys() and len(now_told) == len(told)
    assert {u: rows for u, rows in now_told.items() if u in told} == {u: r for u, r in told.items() if u not in erased}
    assert await site.rows("SELECT * FROM control.erasure ORDER BY erasure_id") == asked
    for now, then in zip(await _numbers(site), numbers, strict=True):
        assert (now["gen"], now["next_seq"]) == (then["gen"] + 1, then["next_seq"])
        assert now["relayed"] == now["next_seq"] - 1, "nothing of it is published"
        assert (now["last_change_seq"], now["last_dead_seq"]) == (then["last_change_seq"], then["last_dead_seq"])
    assert [await site.fed(shard) for shard in range(SHARDS)] == feed


async def test_damage_is_found_and_named(site: Site, postgres: str, tmp_path: Path) -> None:
    """A changed byte, a missing file, one that is there twice; and nothing is made of what is not whole."""
    life = Life(site)
    async with site.segmenter():
        for shard, users in life.users.items():
            for n in range(60):
                life.tell(shard, users[n % 12], "Application Opened", T0 + n)
        await life.passes(T0 + HOUR)
    folder = await archive(site, tmp_path / "archive")
    before = await state(site)
    topic = site.topic(Topic.EVENTS)
    read, problems = verifying.verify(folder, folder.topics(), print)
    assert (read.files, problems) == (len([*folder.log.glob("*/*/*")]), [])

    one = folder.files(topic, 1)[1]
    whole = one.packed()
    one.path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert [str(one.path) in problem for problem in verifying.verify(folder, [topic], print)[1]] == [True]
    with pytest.raises(Broken, match=one.path.name):
        await _rebuilt(site, postgres, folder)
    one.path.unlink()
    missing = f"{folder.log / topic / '1'}: offsets {one.first} to {one.last} are missing"
    (problem,) = verifying.verify(folder, [topic], print)[1]
    assert problem.startswith(missing)
    with pytest.raises(Broken, match=f"offsets {one.first} to {one.last} are missing"):
        await _rebuilt(site, postgres, folder)
    one.path.write_bytes(whole)
    twice = one.path.with_name(one.path.name.replace(f"{one.first:020}", f"{one.first - 1:020}"))
    twice.write_bytes(whole)
    assert len(verifying.verify(folder, [topic], print)[1]) >= 2
    with pytest.raises(Broken, match="are there twice"):
        await _rebuilt(site, postgres, folder)
    twice.unlink()
    assert await state(site) == before

    running = await connect_pool(postgres, size=1, service="segmenter")
    with pytest.raises(LocalError, match="a segmenter is running"):
        await _rebuilt(site, postgres, folder)
    await running.close()
    await site.pool.execute("UPDATE control.installation SET log_id = 'log-2'")
    with pytest.raises(LocalError, match="of several logs"):
        await _rebuilt(site, postgres, Folder(tmp_path / "archive", "log-2"))


async def test_an_archiver_that_dies_changes_nothing(site: Site, postgres: str, tmp_path: Path) -> None:
    """Killed with a file half written, with one just written, and between two: what is there in the end is what an
    undisturbed one writes, and every byte of it is the topic's."""
    value = {"n": 0, "text": "Zürich \u0000"}
    for n in range(40):
        headers = [("received_at", b"1"), ("odd", b"\xff\x00"), ("empty", b"")]
        record = Record(
            None if n % 9 == 0 else b"key\xfe", json.dumps(value | {"n": n}).encode() + b"\xc3" * (n % 2), headers
        )
        await site.produce(Topic.RAW, n % SHARDS, record)
        await site.decide(TimeRecord(-1, b"\xff" * 8, 1, n), shard=n % SHARDS)
    path = tmp_path / "archive"
    for point in ("archive.half_written:1", "archive.after_write:2", "archive.half_written:3"):
        assert await _process(site, postgres, path, point) == 137
    assert [*path.glob("*/*/*/*.half")]
    folder = await archive(site, path)
    assert not [*path.glob("*/*/*/*.half")]
    for topic in (Topic.RAW, Topic.EVENTS):
        for shard in range(SHARDS):
            kept = [record for file in folder.chain(site.topic(topic), shard) for record in file.records()]
            assert [_all_of(record) for record in kept] == [_all_of(r) for r in await site.records(topic, shard)]
    assert len(folder.files(site.topic(Topic.RAW), 0)) > 1
    undisturbed = await archive(site, tmp_path / "other")
    for name in undisturbed.topics():
        for shard in undisturbed.partitions(name):
            there = [r for file in undisturbed.files(name, shard) for r in file.records()]
            assert there == [r for file in folder.chain(name, shard) for r in file.records()]


def _all_of(record: Any) -> tuple[Any, ...]:
    return record.offset, record.timestamp, record.key, record.value, [*record.headers]


async def _process(site: Site, dsn: str, path: Path, crashpoint: str) -> int:
    """Run the archiver as `up` does until it ends; its exit code."""
    told = {
        "PERENNIAL_KAFKA": site.kafka, "PERENNIAL_POSTGRES": dsn, "PERENNIAL_PREFIX": site.names.prefix,
        "PERENNIAL_SHARDS": str(SHARDS), "PERENNIAL_ARCHIVE_PATH": str(path), "PERENNIAL_ARCHIVE_SECONDS": "0.001",
        "PERENNIAL_ARCHIVE_FILE_BYTES": "1000", "PERENNIAL_ARCHIVE_LOOK_SECONDS": "0.05",
        "PERENNIAL_ARCHIVE_PORT": str(free_port()), "PERENNIAL_CRASHPOINT": crashpoint,
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.archive", cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **told}
    )
    return await asyncio.wait_for(process.wait(), 30)


@pytest.mark.kafka
async def test_what_retention_took_comes_from_the_archive(apache_site: Site, postgres: str, tmp_path: Path) -> None:
    """Everything is as it runs: raw, ingest, segmenter. The beginning of both topics is deleted, and users come half from
    files and half from the topic. Then it goes on, and subscribers hear what is new and nothing else."""
    site, users, now = apache_site, users_of(0, 6), apache_site.clock.now_ms()
    places = ({"city": "New York", "state": "NY"}, {"city": "Chicago", "state": "IL"})
    async with site.ingest(), site.segmenter() as running:
        for n in range(60):
            await site.post(users[n % 6], "Application Opened", now - 40 * DAY + n)
            await site.post(users[n % 6], "City Added", now - 40 * DAY + n, properties=places[n % 2])
        await site.applied(0, 119)
        await until(lambda: _inactive(site, 6))
        running.check()
    folder = await archive(site, tmp_path / "archive")
    async with site.ingest(), site.segmenter() as running:
        for n in range(30):
            await site.post(users[n % 3], "Application Opened", now + n)
        await site.applied(0, 149)
        await until(lambda: _relayed(site))
        running.check()
    before, told = await state(site), await site.records(Topic.CHANGES, 0)
    cuts = {topic: folder.files(site.topic(topic), 0)[-1].last - 3 for topic in (Topic.RAW, Topic.EVENTS)}
    async with admin(site.kafka) as client:
        await client.delete_records(
            {TopicPartition(site.topic(topic), 0): RecordsToDelete(before_offset=cut) for topic, cut in cuts.items()}
        )
    for topic, cut in cuts.items():
        assert (await site.log.starts(site.topic(topic), [0]))[0] == cut > 80

    await site.pool.execute(_LOST)
    with pytest.raises(LocalError, match=f"offsets 0 to {cuts[Topic.EVENTS] - 1} are missing"):
        await _rebuilt(site, postgres, None)
    assert not await site.rows("SELECT 1 FROM segmenter.user_state")
    await _rebuilt(site, postgres, folder)
    after = await state(site)
    for row in (*before["cohorts"], *after["cohorts"]):
        del row["entered_seq"]
    # ticks behind the archive were lost; who was due then is due now
    assert after.pop("ticks") and before.pop("ticks")
    assert after == before

    async with site.ingest(), site.segmenter() as running:
        await site.post(users[0], "City Added", now + 99, properties={"city": "Boston", "state": "MA"})
        await site.applied(0, 150)
        await until(lambda: _relayed(site))
        running.check()
    news = [json.loads(record.value) for record in (await site.records(Topic.CHANGES, 0))[len(told) :]]
    assert [(n["kind"], n["user_id"], n["gen"]) for n in news] == [("cohort_entered", users[0], 2)]
    assert news[0]["prev_seq"] == json.loads(told[-1].value)["seq"]


async def _inactive(site: Site, users: int) -> bool:
    return (await site.tallies()).get("segment:inactive_30d") == users


async def _emptied_topic(site: Site) -> None:
    """As if retention had taken all of it; more than it can."""
    name = site.topic(Topic.EVENTS)
    async with admin(site.kafka) as client:
        await client.delete_topics([name])

    async def made() -> bool:
        await ensure_topics(site.kafka, site.names, SHARDS)
        return await site.log.partitions(name) == SHARDS

    await until(made)
    assert not await site.records(Topic.EVENTS, 0)


async def test_a_user_is_erased_from_the_files_and_nobody_else(site: Site, postgres: str, tmp_path: Path) -> None:
    """Decisions keep their chain, the last record its proof; archiver and refold go on as if nothing had happened."""
    life, away = Life(site), users_of(0, 12)[11]
    async with site.segmenter():
        for n, user in enumerate(users_of(0, 12)):
            life.tell(0, user, "Application Opened", T0 + n)
            await site.post(user, "Application Opened", T0 + n)
        life.refuse(0, away, T0 + 20)
        await site.post("somebody-else", "Application Opened", T0, partition=1, previousId=away)
        await life.passes(T0 + HOUR)
        life.tell(0, away, "City Added", T0 + HOUR, city=BOSTON)
        await site.decide(*life.pending.pop(0), shard=0)  # the last record of all is theirs
        await site.applied(0, life.last[0])
    folder = await archive(site, tmp_path / "archive")
    before = await state(site)
    assert _spoken_of(folder, away) == 2 + 3
    found = await scrubbing.scrub(folder, site.names, away, print)
    assert (found.records, _spoken_of(folder, away)) == (2 + 3, 0)
    assert verifying.verify(folder, folder.topics(), print)[1] == []
    assert (await scrubbing.scrub(folder, site.names, away, print)).records == 0
    await site.decide(TimeRecord(life.last[0], b"", 1, T0 + 2 * HOUR), shard=0)
    assert (await archive(site, tmp_path / "archive")).breaks(site.topic(Topic.EVENTS), 0) == []

    await _rebuilt(site, postgres, folder)
    assert (await state(site))["users"] == [row for row in before["users"] if row["user_id"] != away]


def _spoken_of(folder: Folder, user: str) -> int:
    """In how many records of the archive the user's id stands."""
    return sum(
        user.encode() in b"|".join((record.key or b"", record.value or b"", *(value for _, value in record.headers)))
        for topic in folder.topics()
        for partition in folder.partitions(topic)
        for file in folder.files(topic, partition)
        for record in file.records()
    )
