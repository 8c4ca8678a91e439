"""Dead letters on the real spine: rules are mended, letters replayed, and everything is as if they had been right."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from msgspec.structs import replace

from services.ingest.consumer.pipeline import Pipeline
from services.ingest.domain.intake import Intake
from services.ingest.letters import listing as listing_of
from services.ingest.letters import requests
from services.ingest.letters.api import letters
from services.ingest.letters.listing import Matching
from services.ingest.letters.replayer import Replayer
from services.ingest.letters.requests import Asked
from services.local import keys
from shared.contracts import rules as definitions
from shared.contracts.rules import Rules
from shared.contracts.topics import Topic
from shared.contracts.tracking_plan import Action, PlannedEvent, TrackingPlan
from shared.kafka.sender import Record, Sender, SendFailed
from shared.process.http import Health, service_app
from shared.process.metrics import INGEST_VIOLATIONS
from tests.support.people import DAY, HOUR, MINUTE, weather
from tests.support.spine import SHARDS, Phones, Site, counted, until, users_of

WRONG = {"plan": [1, 2]}
PHONE = {"device": {"id": "d", "type": "android", "token": "t"}}


def listing(*properties: str) -> Rules:
    """The weather rules without limits, which list these properties of an opening."""
    intake = replace(weather().intake, properties={"Application Opened": list(properties)})
    return replace(weather(), intake=intake, limits=definitions.Limits())


STRICT, MENDED = listing("plan"), listing()


class Again:
    """A replayer in the test's hands."""

    def __init__(self, site: Site, pipeline: Pipeline, sender: Any = None) -> None:
        self._site, self._pipeline = site, pipeline
        self.replayer = self.worker("one", sender)

    def worker(self, name: str, sender: Any = None) -> Replayer:
        site = self._site
        return Replayer(
            site.pool, site.log, sender or site.sender, site.topic(Topic.RAW), self._pipeline.judge, site.clock,
            Health(), name,
        )  # fmt: skip

    async def ask(self, **asked: Any) -> str:
        async with self._site.pool.acquire() as connection:
            return await requests.ask(connection, Asked(**asked))

    async def told(self, replay_id: str) -> dict[str, Any]:
        async with self._site.pool.acquire() as connection:
            return (await requests.told(connection, replay_id))[0]

    async def done(self, **asked: Any) -> dict[str, int]:
        """The counts of a replay that was carried out to its end."""
        replay_id = await self.ask(**asked)
        while await self.replayer.step():
            pass
        told = await self.told(replay_id)
        assert told["state"] == "done"
        return {name: told[name] for name in ("sent", "refused_still", "replayed_before", "gone")}

    def mend(self, version: int = 2) -> None:
        self._pipeline.use_rules(version, Intake(MENDED, self._site.gazetteer, SHARDS))


def counts(sent: int = 0, refused_still: int = 0, replayed_before: int = 0, gone: int = 0) -> dict[str, int]:
    return {"sent": sent, "refused_still": refused_still, "replayed_before": replayed_before, "gone": gone}


async def dead(site: Site, count: int) -> list[dict[str, Any]]:
    """The dead letters, once there are so many."""

    async def enough() -> list[dict[str, Any]]:
        found = await site.rows("SELECT * FROM audience.dead_letter ORDER BY shard, seq")
        return found if len(found) >= count else []

    found: list[dict[str, Any]] = await until(enough)
    assert len(found) == count
    return found


async def raw_ends(site: Site) -> list[int]:
    return [len(await site.records(Topic.RAW, shard)) for shard in range(SHARDS)]


async def test_what_rules_refused_comes_in_once_they_are_mended(site: Site) -> None:
    """Two are old: their state is right all the same, and nobody is told of them now. Nothing is too old that was young
    when it was received, and a second replay changes nothing."""
    await site.install(STRICT)
    users = users_of(0, 2) + users_of(1, 1)
    now, phones = site.clock.now_ms(), Phones()
    ages = dict(zip(users, (10 * MINUTE, 3 * HOUR, 40 * DAY), strict=True))
    async with site.ingest(rules=STRICT, version=2) as ingest, site.segmenter() as segmenting:
        for user, age in ages.items():
            await site.post(
                user, "Application Opened", now - age, properties=WRONG, messageId=f"m-{user}", context=PHONE
            )
        assert [row["reason"] for row in await dead(site, 3)] == ["invalid_property:plan"] * 3
        again = Again(site, ingest.pipeline)
        ends = await raw_ends(site)
        assert await again.done() == counts(refused_still=3), "these rules refuse them as well"
        assert await again.done(dry_run=True, force=True) == counts(sent=3)
        assert await raw_ends(site) == ends, "neither has sent anything"
        version = await site.install(MENDED)
        again.mend(version)
        async with site.notifier(phones) as notifying:
            assert await again.done() == counts(sent=3)
            assert await again.done(force=True) == counts(replayed_before=3)
            for shard, end in enumerate(await raw_ends(site)):
                await site.applied(shard, end - 1)
            segmenting.check()
            tallies = await site.tallies()
            assert (tallies["users:all"], tallies["stage:acquire"]) == (3, 3)
            # what happened long ago is not told as of now
            seen = await site.rows("SELECT user_id, payload->>'to' AS stage, occurred_at FROM segmenter.ledger"
                                   " WHERE kind = 'stage_changed' AND payload->>'to' = 'acquire'")  # fmt: skip
            assert {row["user_id"]: row["occurred_at"] for row in seen} == {u: now - age for u, age in ages.items()}

            async def planned() -> list[dict[str, Any]]:
                found = await site.rows(
                    "SELECT user_id, state, reason FROM notifier.message WHERE campaign = 'welcome'"
                )
                return found if len(found) == 3 and all(m["state"] in ("sent", "suppressed") for m in found) else []

            messages = {row["user_id"]: (row["state"], row["reason"]) for row in await until(planned)}
            notifying.check()
        young, *old = users
        assert messages == {young: ("sent", ""), **dict.fromkeys(old, ("suppressed", "stale"))}
        assert len(phones.pushes) == 1
        assert sum([a - b for a, b in zip(await raw_ends(site), ends, strict=True)]) == 3


async def test_what_a_tracking_plan_refused_comes_in_once_the_plan_is_mended(site: Site) -> None:
    """Its reason says what and where, and no value; violations are counted, also of what is accepted."""
    secret = "ann@example.com"

    def planned(action: Action, kind: str) -> Rules:
        schema = {"properties": {"version": {"type": kind}}}
        plan = TrackingPlan({"Application Opened": PlannedEvent(schema, action)})
        return replace(MENDED, privacy=definitions.Privacy(pii_less=False), tracking_plan=plan)

    strict, mended = planned("reject", "number"), planned("flag", "string")
    version = await site.install(strict)
    user = users_of(0, 1)[0]
    async with site.ingest(rules=strict, version=version) as ingest, site.segmenter():
        with counted(INGEST_VIOLATIONS, "Application Opened", "reject", "type") as rejected:
            await site.post(user, "Application Opened", properties={"version": secret}, messageId="m-1")
            [letter] = await dead(site, 1)
        assert (letter["reason"], rejected) == ("schema_type:/version", [1])
        async with site.pool.acquire() as connection:
            told = await listing_of.counts(connection, Matching())
        assert [(item["reason"], item["letters"]) for item in told["items"]] == [("schema_type", 1)]
        again = Again(site, ingest.pipeline)
        assert await again.done() == counts(refused_still=1)
        version = await site.install(mended)
        ingest.pipeline.use_rules(version, Intake(mended, site.gazetteer, SHARDS))
        assert await again.done(reason="schema_") == counts(sent=1)
        with counted(INGEST_VIOLATIONS, "Application Opened", "flag", "type") as flagged:
            await site.post(user, "Application Opened", properties={"version": 5}, messageId="m-2")
            await site.applied(0, 2)
        assert flagged == [1] and len(await dead(site, 1)) == 1
        assert (await site.tallies())["stage:acquire"] == 1


async def test_what_is_refused_again_says_that_it_was_a_replay(site: Site) -> None:
    """Each letter is replayed once, so that forcing them again and again adds no more than that each time."""
    user = users_of(1, 1)[0]
    async with site.ingest(rules=STRICT) as ingest, site.segmenter():
        await site.post(user, "Application Opened", properties=WRONG, messageId="m-1")
        [first] = await dead(site, 1)
        assert first["replay"] is False
        again = Again(site, ingest.pipeline)
        assert await again.done(force=True) == counts(sent=1)
        first, second = await dead(site, 2)
        assert (second["replay"], second["reason"], second["received_at"]) == (
            True,
            first["reason"],
            first["received_at"],
        )
        assert await again.done() == counts(refused_still=1, replayed_before=1)
        assert len(await dead(site, 2)) == 2
        record = (await site.records(Topic.RAW, 1))[second["src"]]
        headers = dict(record.headers)
        assert (headers["mode"], headers["message_id"]) == (b"replay", b"m-1")
        assert headers["replay_of"] == f"1/{first['src']}".encode()


async def test_a_replay_takes_only_what_it_was_asked_for(site: Site) -> None:
    ours, other = users_of(0, 2)
    now = site.clock.now_ms()
    async with site.ingest(rules=STRICT) as ingest, site.segmenter():
        for user in (ours, other):
            for hours in (1, 5):
                await site.post(user, "Application Opened", now - hours * HOUR, properties=WRONG)
        await site.post(ours, "City Added", now, properties={"city": "Nowhere at all"})
        found = await dead(site, 5)
        again = Again(site, ingest.pipeline)
        again.mend()
        dry: list[tuple[dict[str, Any], int]] = [
            ({"reason": "unknown"}, 1),
            ({"reason": "invalid_property"}, 4),
            ({"user": other}, 2),
            ({"source": "nobody"}, 0),
            ({"event": "City Added"}, 1),
            ({"since": now - 2 * HOUR}, 3),
            ({"until": now - 2 * HOUR, "user": ours}, 1),
            ({"raw": ("0/0", "0/3", "1/0")}, 2),
        ]
        for asked, expected in dry:
            assert (await again.done(dry_run=True, force=True, **asked))["sent"] == expected, asked
        assert await again.done(raw=(f"0/{found[0]['src']}",)) == counts(sent=1)
        assert await again.done() == counts(sent=3, refused_still=1, replayed_before=1)


class Dying:
    """A sender whose process dies at its first batch: before the broker has it, or after."""

    def __init__(self, sender: Sender, after: bool) -> None:
        self._sender, self._after, self.calls = sender, after, 0

    async def send(self, topic: str, partition: int, records: list[Record]) -> int:
        self.calls += 1
        if self.calls > 1:
            return await self._sender.send(topic, partition, records)
        if self._after:
            await self._sender.send(topic, partition, records)
        raise SendFailed("died")


@pytest.mark.parametrize("after", [False, True], ids=["before the wire", "after the wire"])
async def test_a_replay_that_died_goes_on_without_doubling(site: Site, after: bool) -> None:
    """Raw itself tells which of a batch got there; another process takes over once the lease is up."""
    user, count = users_of(0, 1)[0], 40
    async with site.ingest(rules=STRICT) as ingest, site.segmenter():
        for n in range(count):
            await site.post(user, "Application Opened", properties=WRONG, messageId=f"m-{n}")
        await dead(site, count)
        again = Again(site, ingest.pipeline, Dying(site.sender, after))
        again.mend()
        replay_id = await again.ask()
        with pytest.raises(SendFailed):
            await again.replayer.step()
        successor = again.worker("two")
        assert await successor.step() is False, "the first one's lease still holds"
        await site.pool.execute("UPDATE control.replay SET lease_until = now()")
        while await successor.step():
            pass
        told = await again.told(replay_id)
        assert (told["state"], told["sent"]) == ("done", count)
        assert (await raw_ends(site))[0] == 2 * count
        assert await again.done() == counts(replayed_before=count)


async def test_a_cancelled_replay_stops(site: Site) -> None:
    user = users_of(0, 1)[0]
    async with site.ingest(rules=STRICT) as ingest, site.segmenter():
        await site.post(user, "Application Opened", properties=WRONG)
        await dead(site, 1)
        again = Again(site, ingest.pipeline)
        again.mend()
        replay_id = await again.ask()
        async with site.pool.acquire() as connection:
            assert await requests.cancel(connection, replay_id)
            assert not await requests.cancel(connection, replay_id)
        assert await again.replayer.step() is False
        assert (await again.told(replay_id))["state"] == "cancelled"
        assert await again.done() == counts(sent=1), "what it had not sent is free for others"


async def test_letters_of_another_log_are_gone(site: Site) -> None:
    user = users_of(0, 1)[0]
    async with site.ingest(rules=STRICT) as ingest, site.segmenter():
        await site.post(user, "Application Opened", properties=WRONG)
        await dead(site, 1)
        await site.pool.execute("UPDATE control.installation SET log_id = 'log-2'")
        again = Again(site, ingest.pipeline)
        again.mend()
        assert await again.done() == counts(gone=1)


async def test_dead_letters_by_http(site: Site) -> None:
    """Pages fit together, counts agree with them, bytes are masked, and what is no request is a 4xx."""
    users = users_of(0, 2) + users_of(0, 1, "ada@example.com")
    async with site.pool.acquire() as connection:
        reader = await keys.create(connection, "admin", "support", scopes=["read"])
        writer = await keys.create(connection, "admin", "ops")
    app: FastAPI = service_app("ingest", Health())
    app.include_router(letters(site.pool, site.log, site.topic(Topic.RAW), SHARDS))
    async with site.ingest(rules=STRICT), site.segmenter():
        for user in users:
            await site.post(user, "Application Opened", properties={**WRONG, "mail": "ada@example.com"})
        await site.post(users[0], "City Added", properties={"city": "Nowhere at all"})
        await dead(site, 4)
        transport = ASGITransport(app=app)
        async with AsyncClient(transport=transport, base_url="http://ingest") as http:

            async def asked(method: str, path: str, key: str = reader, **more: Any) -> tuple[int, Any]:
                answer = await http.request(
                    method, f"/v1/dead-letters{path}", headers={"authorization": f"Bearer {key}"}, **more
                )
                return answer.status_code, answer.json()

            pages, cursor = [], ""
            while True:
                status, page = await asked("GET", f"?limit=3&cursor={cursor}")
                assert status == 200
                pages += page["items"]
                if not page["next"]:
                    break
                cursor = page["next"]
            assert "ada@" not in str(pages) and sum("a… (str" in item["user_id"] for item in pages) == 1
            assert len(pages) == 4 and len({item["seq"] for item in pages}) == 4
            assert [item["recorded_at"] for item in pages] == sorted((i["recorded_at"] for i in pages), reverse=True)
            assert len((await asked("GET", "?reason=unknown_city"))[1]["items"]) == 1
            _, told = await asked("GET", "/stats")
            assert told["letters"] == 4
            assert told["by"]["reason"] == {"invalid_property": 3, "unknown_city": 1}
            assert sum(told["by"]["day"].values()) == 4 and told["by"]["source"] == {"app": 4}
            _, shown = await asked("GET", "/0/0")
            assert shown["event"]["event"] == "Application Opened"
            assert "ada" not in str(shown) and shown["event"]["properties"]["mail"].startswith("a… (str")
            assert (await asked("POST", "/replay"))[0] == 403
            status, replay = await asked(
                "POST", "/replay", writer, json={"reason": "unknown_city", "from": "2020-01-01"}
            )
            assert (status, replay["state"], replay["asked"]["reason"]) == (202, "waiting", "unknown_city")
            assert (await asked("GET", f"/replays/{replay['replay_id']}"))[1] == replay
            assert (await asked("DELETE", f"/replays/{replay['replay_id']}", writer))[1]["state"] == "cancelled"
            assert (await asked("POST", "/replay", writer, json={"user": users[2], "dry_run": True}))[0] == 202
            _, several = await asked("GET", "/replays")
            assert [one["asked"]["user"] for one in several["items"]] == [f"a… (str, {len(users[2])})", ""]
            wrong: list[tuple[str, str, Any]] = [
                ("GET", "?cursor=x", None), ("GET", "?cursor=1-99999999999-2", None), ("GET", "?from=soon", None),
                ("GET", "/0/999", None), ("GET", "/77/0", None), ("GET", "/replays/nobody", None),
                ("POST", "/replay", {"raw": ["0"]}), ("POST", "/replay", {"nonsense": 1}), ("POST", "/replay", [1]),
                ("POST", "/replay", {"from": 7}), ("POST", "/replay", {"reason": "a\x00"}),
            ]  # fmt: skip
            for method, path, body in wrong:
                status, answer = await asked(method, path, writer, json=body)
                assert status in (400, 404) and set(answer) == {"code", "message"}, (path, body, answer)
