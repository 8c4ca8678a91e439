"""A user is erased on the real spine: what goes, what stays counted, what is told, and who comes back."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from httpx2 import ASGITransport, AsyncClient

from services.ingest.domain.intake import Intake, RawRecord, RequestKind
from services.ingest.gateway.app import make_app
from services.ingest.gateway.keys import KeyBook
from services.ingest.gateway.settings import GatewaySettings
from services.ingest.letters import requests as replays
from services.ingest.letters.requests import Asked
from services.ingest.privacy import requests
from services.local import keys, rebuilding
from services.notifier import exporting as notifier_exporting
from services.notifier.erasing import Erased, erase
from services.notifier.runs import Runs
from services.segmenter import exporting
from services.segmenter.erasing import Overwriter
from services.segmenter.privacy import privacy
from shared.contracts.topics import Topic
from shared.data.db import Pool
from shared.gazetteer import load as load_gazetteer
from shared.kafka.sender import Record
from shared.process.http import Health, service_app
from shared.process.metrics import SEGMENTER_EVENTS
from tests.component.test_gateway import FakeOutlet
from tests.support.people import MINUTE, weather
from tests.support.spine import SHARDS, Phones, Site, counted, until, users_of
from tests.support.tables import rows_that_hold

QUIET = msgspec.structs.replace(weather(), limits=type(weather().limits)())


def phone(user: str) -> dict[str, Any]:
    return {
        "device": {"id": f"{user}-phone", "type": "android", "token": f"{user}-token"},
        "timezone": "America/Denver",
    }


async def ask(site: Site, kind: RequestKind, user: str) -> str:
    """The request in raw, as gateway and command put it there."""

    async def send(shard: int, record: Record) -> None:
        await site.produce(Topic.RAW, shard, record)

    async with site.pool.acquire() as connection:
        return await requests.ask(connection, send, kind, user, SHARDS, site.clock.now_ms())


async def state(site: Site, erasure_id: str) -> str:
    async with site.pool.acquire() as connection:
        told = await requests.told(connection, erasure_id)
    assert told is not None
    return str(told["state"])


async def reached(site: Site, erasure_id: str, wanted: str) -> None:
    async def there() -> bool:
        return await state(site, erasure_id) == wanted

    await until(there)


async def finished(site: Site, erasure_id: str) -> None:
    """Wait until the erasure is done, seeing to the ledger as the segmenter's process does."""
    overwriter = Overwriter(site.pool, lambda: range(SHARDS))

    async def done() -> bool:
        await overwriter.step()
        return await state(site, erasure_id) == "done"

    await until(done)


async def live(site: Site, user: str) -> None:
    """A life that leaves traces in every table: cities, a phone, a message, a dead letter, a replay asked for."""
    now = site.clock.now_ms()
    events: list[tuple[str, Any]] = [
        ("Application Opened", {"context": phone(user)}),
        ("City Added", {"properties": {"city": "New York, NY"}}),
        ("City Searched", {"properties": {"city": "Dallas, TX"}}),
        ("City Added", {"properties": {"city": f"Nowhere {user}"}}),
    ]
    for n, (name, more) in enumerate(events):
        await site.post(user, name, now - 10 * MINUTE + n, messageId=f"{user}-{n}", **more)
    async with site.pool.acquire() as connection:
        await replays.ask(connection, Asked(user=user, dry_run=True))


async def settled(site: Site, shard: int) -> None:
    """Wait until the shard's raw records are applied, and the feed read to its end."""
    await site.applied(shard, len(await site.records(Topic.RAW, shard)) - 1)
    last = await site.pool.fetchval(
        "SELECT next_seq - 1 FROM spine.shard_owner WHERE service = 'segmenter' AND shard = $1", shard
    )
    await site.applied(shard, last, "notifier")


async def test_nothing_of_an_erased_user_is_left(site: Site) -> None:
    """A neighbour in the same shard, who did the same, keeps everything; counts are as if there had been only them."""
    await site.install(QUIET)
    user, neighbour = users_of(0, 2)
    phones = Phones()
    async with site.ingest(rules=QUIET, version=2), site.segmenter() as segmenting, site.notifier(phones) as notifying:
        await live(site, neighbour)
        await settled(site, 0)
        before = await site.tallies()
        await live(site, user)
        await settled(site, 0)

        async def sent() -> bool:
            segmenting.check()
            notifying.check()
            found = await site.rows("SELECT FROM notifier.outcome WHERE outcome = 'sent'")
            return len(found) == 2

        await until(sent)
        assert (await site.tallies())["users:all"] == 2
        held = {table for table, _ in await rows_that_hold(site.pool, user)}
        assert held >= {
            "segmenter.user_state", "segmenter.cohort_member", "notifier.recipient", "control.replay",
        }, held  # fmt: skip
        assert {table.rpartition("_")[0] for table in held} >= {
            "segmenter.ledger", "segmenter.outbox", "notifier.message", "notifier.outcome",
        }, held  # fmt: skip
        erasure_id = await ask(site, "erase", user)
        await reached(site, erasure_id, "erased")
        assert await rows_that_hold(site.pool, user), "the ledger still says whom it tells of, until all is done"
        await finished(site, erasure_id)
        segmenting.check()
        notifying.check()
        assert await rows_that_hold(site.pool, user) == []
        after = await site.tallies()
        assert after == before
        days = await site.rows(
            "SELECT kind, name, sum(users)::int AS n FROM segmenter.tally_day WHERE kind = 'users' GROUP BY 1, 2"
        )
        assert [row["n"] for row in days] == [1]
        feed = await site.fed(0)
        assert [row.seq for row in feed] == list(range(1, len(feed) + 1))
        *_, last = [n for n, row in enumerate(feed) if row.user_id == user]
        assert (feed[last].kind, feed[last].cause) == ("user_erased", ("erase", erasure_id))
        assert last == len(feed) - 1
        changes = [json.loads(r.value) for r in await site.records(Topic.CHANGES, 0)]
        of_user = [c["kind"] for c in changes if c["user_id"] == user]
        assert of_user[-4:-1].count("segment_exited") + of_user[-4:-1].count("cohort_exited") == 3
        assert of_user[-1] == "user_erased"
        # what was sent stays counted; what was to be never will
        messages = await site.rows("SELECT user_id = $1 AS theirs, state, token FROM notifier.message", neighbour)
        assert sorted((m["theirs"], m["state"], bool(m["token"])) for m in messages) == [
            (False, "sent", False), (False, "suppressed", False), (True, "sent", True), (True, "waiting", False),
        ]  # fmt: skip
        letters = await site.rows("SELECT user_id FROM audience.dead_letter")
        assert [row["user_id"] for row in letters] == [neighbour]


async def test_an_erased_user_comes_back_only_when_they_are_let_in(site: Site) -> None:
    user = users_of(1, 1)[0]
    now = site.clock.now_ms()
    async with site.ingest(), site.segmenter() as segmenting, site.notifier(Phones()) as notifying:
        await site.post(user, "Application Opened", now - 3 * MINUTE, messageId="m-1")
        first = await ask(site, "erase", user)
        await finished(site, first)
        with counted(SEGMENTER_EVENTS, "suppressed") as dropped:
            await site.post(user, "Application Opened", now - 2 * MINUTE, messageId="m-2", context=phone(user))
            await site.post(user, "City Added", now - 2 * MINUTE, properties={"city": "Nowhere at all"})
            await settled(site, 1)
        assert dropped == [2.0]
        assert await rows_that_hold(site.pool, user) == []
        # another owner knows as well
        segmenting.reader._consumer.reassign()  # type: ignore[attr-defined]
        await site.post(user, "Application Opened", now - MINUTE, messageId="m-3")
        await settled(site, 1)
        assert "users:all" not in await site.tallies()
        again = await ask(site, "readmit", user)
        await reached(site, again, "done")
        await site.post(user, "Application Opened", now, messageId="m-1")
        await settled(site, 1)
        assert (await site.tallies())["users:all"] == 1, "and nothing is remembered: not even which events were theirs"
        [row] = await site.rows("SELECT * FROM segmenter.user_state")
        assert row["user_id"] == user
        second = await ask(site, "erase", user)
        await finished(site, second)
        assert await rows_that_hold(site.pool, user) == []
        aliases = {row["user_id"] for row in await site.ledger(1) if row["user_id"]}
        assert len(aliases) == 2 and all(alias.startswith("erased-") for alias in aliases)
        segmenting.check()
        notifying.check()


async def test_what_waits_for_an_erased_user_is_never_sent(site: Site) -> None:
    """Intents that a stopped notifier left, and one on its way to the wire when its user is erased."""
    user = users_of(0, 1)[0]
    await site.install(QUIET)
    phones = Phones()
    async with site.ingest(rules=QUIET, version=2), site.segmenter():
        async with site.notifier(phones, dispatch=False):
            await live(site, user)

            async def planned() -> bool:
                found = await site.rows("SELECT state FROM notifier.message")
                return any(row["state"] == "intent" for row in found)

            await until(planned)
            erasure_id = await ask(site, "erase", user)
            await reached(site, erasure_id, "erased")
        async with site.notifier(phones) as notifying:
            await finished(site, erasure_id)
            notifying.check()
    assert phones.pushes == []
    states = await site.rows("SELECT DISTINCT state, reason, user_id LIKE 'erased-%' AS nobody FROM notifier.message")
    assert {(row["state"], row["reason"], row["nobody"]) for row in states} == {("suppressed", "erased", True)}
    assert await site.records(Topic.OUTCOMES, 0) == [], "nobody is told what became of it"


async def test_a_rebuilt_notifier_knows_who_was_erased(site: Site, postgres: str) -> None:
    """It goes on behind the row that says so: whoever rebuilds it erases what it had not."""
    user, neighbour = users_of(0, 2)
    await site.install(QUIET)
    async with site.ingest(rules=QUIET, version=2), site.segmenter():
        async with site.notifier(Phones()) as notifying:
            for one in (user, neighbour):
                await live(site, one)
            await settled(site, 0)
            notifying.check()
        erasure_id = await ask(site, "erase", user)
        await reached(site, erasure_id, "applied")
        held = {table for table, _ in await rows_that_hold(site.pool, user)}
        assert "notifier.recipient" in held
        await rebuilding.rebuild(postgres, site.log, site.names, range(SHARDS), lambda _: None)
        assert await state(site, erasure_id) == "erased"
        async with site.notifier(Phones()) as notifying:
            await finished(site, erasure_id)
            notifying.check()
    assert await rows_that_hold(site.pool, user) == []
    recipients = await site.rows("SELECT user_id FROM notifier.recipient")
    assert [row["user_id"] for row in recipients] == [neighbour]


async def test_everything_of_a_user_is_exported(site: Site) -> None:
    """Of every table that holds the user, and the bytes of what was refused; by whoever may, and nobody else."""
    user = users_of(1, 1)[0]
    await site.install(QUIET)
    async with site.pool.acquire() as connection:
        reader = await keys.create(connection, "admin", "support", scopes=["read", "write"])
        officer = await keys.create(connection, "admin", "officer", scopes=["privacy"])

    async def read_raw(partition: int, offset: int) -> Any:
        return (await site.log.at(site.topic(Topic.RAW), {partition: offset}))[partition]

    app = service_app("segmenter", Health())
    app.include_router(privacy(site.pool, site.gazetteer, SHARDS, read_raw))
    async with site.ingest(rules=QUIET, version=2), site.segmenter(), site.notifier(Phones()):
        await live(site, user)
        await settled(site, 1)
        async with AsyncClient(transport=ASGITransport(app=app), base_url="http://segmenter") as http:
            paths = (f"/v1/users/{user}/export", "/v1/suppressed", f"/v1/suppressed/{user}")
            for path in paths:
                answer = await http.get(path, headers={"authorization": f"Bearer {reader}"})
                assert (answer.status_code, answer.json()["details"]["needs"]) == (403, "privacy")
            answers = [await http.get(path, headers={"authorization": f"Bearer {officer}"}) for path in paths]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        kept = answers[0].json()
        assert answers[1].json() == {"users": 0} and answers[2].json() == {"user_id": user, "suppressed": False}
    assert kept["known"] and not kept["suppressed"]
    assert kept["state"]["cities"]["added"][0]["name"] == "New York City"
    assert kept["row"]["cold"]["devices"] == [{"id": f"{user}-phone", "type": "android", "token": f"{user}-token"}]
    assert {c["relation"] for c in kept["cohorts"]} == {"added", "searched"}
    rows = [row for row in await site.ledger(1) if row["user_id"] == user]
    assert len(kept["history"]) + len(kept["of_last_week"]) + len(kept["dead_letters"]) == len(rows) > 5
    [letter] = kept["dead_letters"]
    assert (
        letter["reason"] == "unknown_city" and json.loads(letter["posted"])["properties"]["city"] == f"Nowhere {user}"
    )
    async with site.pool.acquire() as connection:
        told = await notifier_exporting.export(connection, SHARDS, user)
        nobody = await exporting.export(connection, read_raw, site.gazetteer, SHARDS, "nobody")
    assert told["recipient"]["devices"][0]["token"] == f"{user}-token"
    assert [m["campaign"] for m in told["messages"]].count("welcome") == 1
    json.dumps(told)
    assert (nobody["known"], nobody["state"], nobody["history"]) == (False, None, [])


async def test_only_an_operator_erases(site: Site) -> None:
    """Write keys ship inside apps: what is posted with one erases nobody, whatever it calls itself."""
    user, odd = users_of(0, 1)[0], "a/b c?d=ü"
    async with site.pool.acquire() as connection:
        writer = await keys.create(connection, "admin", "ops", scopes=["read", "write"])
        officer = await keys.create(connection, "admin", "officer", scopes=["privacy"])
    outlet = FakeOutlet()
    app, _ = make_app(KeyBook.of(app="demo"), outlet, Health(), site.clock, SHARDS, GatewaySettings(), site.pool)
    async with AsyncClient(transport=ASGITransport(app=app), base_url="http://gateway") as http:

        async def asked(method: str, path: str, key: str = officer, **more: Any) -> Any:
            return await http.request(method, path, headers={"authorization": f"Bearer {key}"}, **more)

        assert (await http.delete(f"/v1/users/{user}")).status_code == 401
        for path in (f"/v1/users/{user}", f"/v1/suppressed/{user}"):
            assert (await asked("DELETE", path, writer)).status_code == 403
            assert (await asked("DELETE", path, "demo")).status_code == 401, "a write key is no admin key"
        assert (await asked("DELETE", f"/v1/users/{'x' * 300}")).status_code == 422
        assert (await asked("DELETE", "/v1/users/%00")).status_code == 400
        posted = {"type": "erase", "mode": "erase", "userId": user, "messageId": "m-1"}
        assert (await asked("POST", "/v1/batch", "demo", json={"batch": [posted]})).status_code == 200
        [erased, other] = [await asked("DELETE", "/v1/users/" + path) for path in (user, "a%2Fb%20c%3Fd%3D%C3%BC")]
        assert erased.status_code == other.status_code == 202
        receipt = erased.json()
        assert receipt["state"] == "asked" and user not in str(receipt)
        assert (await asked("GET", erased.headers["location"])).json() == receipt
        assert (await asked("GET", "/v1/erasures/er-none")).status_code == 404
        outlet.away = "the broker does not answer"
        assert (await asked("DELETE", f"/v1/users/{user}")).status_code == 503
    assert await site.pool.fetchval("SELECT count(*) FROM control.erasure") == 2, "what was not asked for leaves no row"
    intake = Intake(weather(), site.gazetteer, SHARDS)
    verdicts = [
        intake.judge(RawRecord(shard, 0, record.key, record.value, dict(record.headers), 0))
        for shard, record in outlet.taken
    ]
    told = [(type(v).__name__, v.user_id, getattr(v, "reason", "")) for v in verdicts]
    assert told == [("Refused", user, "unknown_type"), ("Requested", user, ""), ("Requested", odd, "")]


@pytest.mark.parametrize("user", ["", "x" * 257, "a\x00b", "\ud800"])
def test_an_id_nobody_has_is_not_asked_for(user: str) -> None:
    assert requests.check(user)


async def test_pages_that_ended_at_an_erased_user_end_at_the_one_before(database: Pool) -> None:
    """Where a run goes on, and what its pages were, stays as it was for everybody else; an empty page is gone."""
    recipients = [(0, user) for user in ("a", "c", "e", "x:y:c")] + [(1, "b"), (1, "c")]
    runs = {"alert": ["", "a", "c", "e"], "city": ["", "added:7:a", "added:7:c", "default:7:c", "default:8:e"]}
    async with database.acquire() as connection:
        await connection.executemany("INSERT INTO notifier.recipient VALUES ($1, $2, '')", recipients)
        for run_id, places in runs.items():
            await connection.execute(
                "INSERT INTO notifier.run (run_id, campaign, campaign_version, occurrence, context_id, log_id,"
                " context_offset, city_ids, relations, facts, occurred_at, began_at, created_at)"
                " VALUES ($1, 'c', 1, $1, '', '', 0, '{}', '{}', '{}', 0, 0, 0)",
                run_id,
            )
            for shard in (0, 1):
                await connection.execute(
                    "INSERT INTO notifier.run_shard (run_id, shard, cursor) VALUES ($1, $2, $3)",
                    run_id,
                    shard,
                    places[2],
                )
                await connection.executemany(
                    "INSERT INTO notifier.run_page VALUES ($1, $2, $3, 1, 1, 1, 1)",
                    [(run_id, shard, place) for place in places],
                )
        erased = [Erased(0, "a", "er-1"), Erased(0, "c", "er-2")]
        assert await erase(connection, erased, {0: 5}) == set()

        async def ends(table: str, column: str, shard: int) -> list[str]:
            query = f"SELECT run_id || ' ' || {column} AS place FROM notifier.{table} WHERE shard = $1 ORDER BY place"
            return [row["place"] for row in await connection.fetch(query, shard)]

        assert await ends("run_shard", "cursor", 0) == ["alert ", "city added:7:"]
        assert await ends("run_page", "after", 0) == [
            "alert ", "alert e", "city ", "city added:7:", "city default:7:", "city default:8:e",
        ]  # fmt: skip
        assert await ends("run_page", "after", 1) == sorted(f"{r} {p}" for r, several in runs.items() for p in several)
        assert await ends("run_shard", "cursor", 1) == ["alert c", "city added:7:c"]


async def test_a_page_that_waits_is_read_again_without_whom_was_erased(database: Pool) -> None:
    """Or its run would go on behind an id that nobody may find any more."""
    runs, heard = Runs(database, load_gazetteer()), (0, -2)
    async with database.acquire() as connection:
        await connection.execute(
            "INSERT INTO notifier.run (run_id, campaign, campaign_version, occurrence, context_id, log_id, context_offset,"
            " city_ids, relations, facts, occurred_at, began_at, created_at, context)"
            " VALUES ('r', 'c', 1, 'o', '', '', 0, '{7}', '{default}', '{}', 0, 0, 0, 'none')"
        )
        await connection.execute("INSERT INTO notifier.run_shard (run_id, shard) VALUES ('r', 0)")
        for seq, user in enumerate(("a", "b")):
            await connection.execute("INSERT INTO segmenter.cohort_member VALUES (0, 7, 'default', $1, $2)", user, seq)
    runs.own([0])
    assert await runs.next_pages(lambda _: heard, 0) == []
    await database.execute("DELETE FROM segmenter.cohort_member WHERE user_id = 'b'")
    runs.reread()
    heard = (0, -1)
    (page,) = await runs.next_pages(lambda _: heard, 0)
    assert page.end == "default:7:a"


async def test_one_erased_again_and_again_leaves_one_story_each(site: Site) -> None:
    """Asked three times at once, with an event between: each leaves under its own id what was new since the one before."""
    user = users_of(0, 1)[0]
    async with site.segmenter(), site.notifier(Phones()) as notifying:
        async with site.ingest():
            await site.post(user, "Application Opened", messageId="m-1")
            receipts = [await ask(site, "erase", user), await ask(site, "erase", user)]
            await ask(site, "readmit", user)
            await site.post(user, "Application Opened", messageId="m-2")
            receipts.append(await ask(site, "erase", user))
            for receipt in receipts:
                await finished(site, receipt)
        notifying.check()
    stories: dict[str, list[str]] = {}
    for row in await site.ledger(0):
        if row["user_id"]:
            stories.setdefault(row["user_id"], []).append(row["kind"])
    full, empty, again = stories.values()
    assert full == again and full[0] == "stage_changed" and full[-1] == "user_erased" and len(full) > 3
    assert empty == ["user_erased"]
    assert await site.tallies() == {}
