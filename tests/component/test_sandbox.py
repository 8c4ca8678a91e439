"""The push sandbox: what it keeps, how it fails on purpose, and that it runs as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from pyreqwest.client import ClientBuilder

from services.demo.sandbox import Sandbox, start
from services.demo.sandbox_store import Behaviour, Behaviours, Mailbox
from services.demo.sandbox_wire import Told
from services.demo.service_account import service_account
from services.notifier.transports.oauth import AccessToken, ServiceAccount
from shared.process.clock import Clock, parse_instant

REAL_MS = Clock().real_ms
FIELDS = [
    "n",
    "provider",
    "token",
    "title",
    "body",
    "data",
    "collapse_id",
    "ttl_seconds",
    "received_at",
    "sound",
    "action",
]


class Client:
    def __init__(self, session: aiohttp.ClientSession, url: str, sandbox: Sandbox) -> None:
        self.session, self.url, self.sandbox = session, url, sandbox

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        async with self.session.request(method, self.url + path, **options) as answer:
            if answer.content_type == "application/json" and answer.content_length:
                return answer.status, await answer.json()
            return answer.status, await answer.text()

    async def bearer(self) -> dict[str, str]:
        made = service_account(self.url)
        account = ServiceAccount(**{name: made[name] for name in ServiceAccount.__struct_fields__})
        async with ClientBuilder().no_proxy().build() as http:
            return {"Authorization": f"Bearer {await AccessToken(account, http, REAL_MS).get()}"}

    async def send(self, headers: dict[str, str], message: dict[str, Any], **more: Any) -> tuple[int, Any]:
        return await self.ask("POST", "/v1/projects/p/messages:send", headers=headers, json={"message": message} | more)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        sandbox = Sandbox(REAL_MS)
        port = await start(sandbox, stack, "127.0.0.1", 0)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Client(session, f"http://127.0.0.1:{port}", sandbox)


async def test_an_fcm_push_is_shown_with_the_fields_of_the_contract(client: Client) -> None:
    before = REAL_MS()
    message = {
        "token": "t1",
        "notification": {"title": "<b>T</b>", "body": "B"},
        "data": {"message_id": "m1"},
        "android": {"ttl": "60s", "collapse_key": "c1"},
    }
    status, answer = await client.send(await client.bearer(), message)
    assert status == 200
    assert answer["name"].startswith("projects/p/messages/")
    status, listed = await client.ask("GET", "/pushes")
    (item,) = listed["items"]
    assert (status, listed["next"], list(item)) == (200, None, FIELDS)
    assert before <= parse_instant(item.pop("received_at")) <= REAL_MS()
    assert item == {
        "n": 1,
        "provider": "fcm",
        "token": "t1",
        "title": "<b>T</b>",
        "body": "B",
        "data": {"message_id": "m1"},
        "collapse_id": "c1",
        "ttl_seconds": 60,
        "sound": False,
        "action": "show",
    }
    assert (await client.ask("GET", "/pushes/count"))[1]["count"] == 1


async def test_a_phone_shows_the_last_of_each_collapse_id_until_it_ends_or_is_taken_away(client: Client) -> None:
    bearer = await client.bearer()

    async def push(title: str, collapse: str, ttl: int = 60, action: str = "show") -> list[tuple[str, bool]]:
        message = {
            "token": "t1",
            "data": {"action": action},
            "android": {"ttl": f"{ttl}s", "collapse_key": collapse},
            **({"notification": {"title": title}} if action != "retract" else {}),
            **({"apns": {"payload": {"aps": {"sound": "default"}}}} if action == "show" else {}),
        }
        assert (await client.send(bearer, message))[0] == 200
        shown = (await client.ask("GET", "/shown?token=t1"))[1]["items"]
        return [(one["title"], one["sound"]) for one in shown]

    assert await push("watch", "a") == [("watch", True)]
    assert await push("other", "b") == [("watch", True), ("other", True)]
    assert await push("warning", "a", action="replace") == [("other", True), ("warning", False)]
    assert await push("gone at once", "c", ttl=0) == [("other", True), ("warning", False)]
    assert await push("", "b", action="retract") == [("warning", False)]
    assert (await client.ask("GET", "/shown?token=t2"))[1]["items"] == []
    assert (await client.ask("GET", "/pushes/count"))[1]["count"] == 5
    screens = client.sandbox.mailbox.screens
    assert [one.title for one in screens.now(REAL_MS() + 59_000)] == ["warning"]
    assert screens.now(REAL_MS() + 61_000) == []


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"notification": {"title": "t"}}, "message.token"),
        ({"token": 7}, "message.token"),
        ({"token": "t", "data": {"n": 1}}, "message.data"),
        ({"token": "t", "data": {"from": "x"}}, "message.data"),
        ({"token": "t", "android": {"ttl": "1 day"}}, "message.android.ttl"),
        ({"token": "t", "android": {"ttl": "2419201s"}}, "message.android.ttl"),
        ({"token": "t", "android": {"priority": "MAX"}}, "message.android.priority"),
        ({"token": "t", "notification": {"title": "x" * 4097}}, "message"),
        ({"token": "t", "apns": {"headers": {"apns-collapse-id": "x" * 65}}}, "message.apns.headers"),
        ({"token": "t", "colour": "red"}, "message"),
    ],
)
async def test_a_payload_that_fcm_would_refuse_is_refused(client: Client, message: Any, field: str) -> None:
    status, answer = await client.send(await client.bearer(), message)
    codes = [d["errorCode"] for d in answer["error"]["details"] if "errorCode" in d]
    fields = [v["field"] for d in answer["error"]["details"] for v in d.get("fieldViolations", [])]
    assert (status, answer["error"]["status"], codes) == (400, "INVALID_ARGUMENT", ["INVALID_ARGUMENT"])
    assert fields[0].startswith(field)
    assert (await client.ask("GET", "/pushes/count"))[1]["count"] == 0


async def test_validate_only_sends_nothing(client: Client) -> None:
    status, _ = await client.send(await client.bearer(), {"token": "t"}, validate_only=True)
    assert status == 200
    assert (await client.ask("GET", "/pushes/count"))[1]["count"] == 0


async def test_only_its_own_tokens_open_it(client: Client) -> None:
    for headers in ({}, {"Authorization": "Bearer made-up"}, {"Authorization": "Basic eA=="}):
        status, answer = await client.send(headers, {"token": "t"})
        assert (status, answer["error"]["status"]) == (401, "UNAUTHENTICATED")
    bearer = await client.bearer()
    client.sandbox.tokens.revoke_all()
    assert (await client.send(bearer, {"token": "t"}))[0] == 401


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"grant_type": "password", "assertion": "x"},
        {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": "not.a.jwt"},
        {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer"},
    ],
)
async def test_a_malformed_assertion_gets_no_token(client: Client, form: dict[str, str]) -> None:
    for path in ("/token", "/oauth2/token"):
        status, answer = await client.ask("POST", path, data=form)
        assert (status, answer["error"]) == (400, "invalid_grant")


@pytest.mark.parametrize(
    ("mode", "status", "state", "code"),
    [
        ("429", 429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"),
        ("500", 500, "INTERNAL", "INTERNAL"),
        ("503", 503, "UNAVAILABLE", "UNAVAILABLE"),
        ("unregistered", 404, "NOT_FOUND", "UNREGISTERED"),
        ("bad_token", 400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
    ],
)
async def test_failures_are_worded_as_fcm_words_them(
    client: Client, mode: str, status: int, state: str, code: str
) -> None:
    bearer = await client.bearer()
    assert (await client.ask("PUT", "/behaviour", json={"provider": "fcm", "mode": mode}))[0] == 200
    got, answer = await client.send(bearer, {"token": "t"})
    assert (got, answer["error"]["status"], answer["error"]["details"][0]["errorCode"]) == (status, state, code)


async def test_a_throttled_answer_says_when_to_come_back(client: Client) -> None:
    bearer = await client.bearer()
    await client.ask("PUT", "/behaviour", json={"provider": "fcm", "mode": "429", "retry_after_seconds": 3})
    url = client.url + "/v1/projects/p/messages:send"
    async with client.session.post(url, headers=bearer, json={"message": {"token": "t"}}) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "3")


@pytest.mark.parametrize(("mode", "arrived"), [("reset", 0), ("accept_then_reset", 1)])
async def test_a_reset_ends_the_connection_before_or_after_acceptance(client: Client, mode: str, arrived: int) -> None:
    bearer = await client.bearer()
    await client.ask("PUT", "/behaviour", json={"provider": "fcm", "mode": mode})
    with pytest.raises((aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)):
        await client.send(bearer, {"token": "t"})
    assert (await client.ask("GET", "/pushes/count"))[1]["count"] == arrived


async def test_a_hanging_push_never_arrives_and_frees_its_place(client: Client) -> None:
    bearer = await client.bearer()
    await client.ask("PUT", "/behaviour", json={"provider": "fcm", "mode": "hang"})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await client.send(bearer, {"token": "t"})
    await client.ask("PUT", "/behaviour", json={"mode": "ok"})
    assert (await client.send(bearer, {"token": "t"}))[0] == 200
    assert (await client.ask("GET", "/pushes/count"))[1]["count"] == 1


async def test_behaviours_are_per_provider_and_checked(client: Client) -> None:
    await client.ask("PUT", "/behaviour", json={"provider": "apns", "mode": "500"})
    assert (await client.send(await client.bearer(), {"token": "t"}))[0] == 200
    headers = {"Authorization": "bearer x", "apns-topic": "com.example"}
    assert (await client.ask("POST", "/3/device/a", headers=headers, json={"aps": {}}))[0] == 500
    refused: tuple[object, ...] = ({"mode": "nope"}, {"mode": "ok", "share": 2}, {"provider": "sms"}, {"speed": 1}, [])
    for wrong in refused:
        status, answer = await client.ask("PUT", "/behaviour", json=wrong)
        assert (status, answer["code"]) == (400, "bad_behaviour")


async def test_apns_and_web_push_arrive_too(client: Client) -> None:
    expiration = str(REAL_MS() // 1000 + 100)
    headers = {"Authorization": "bearer x", "apns-topic": "com.example", "apns-collapse-id": "c"}
    payload = {"aps": {"alert": {"title": "T", "body": "B"}}, "message_id": "m"}
    apns = await client.ask("POST", "/3/device/a", headers=headers | {"apns-expiration": expiration}, json=payload)
    web = await client.ask("POST", "/webpush/w", headers={"TTL": "60", "Topic": "x"}, data=b"sealed")
    assert (apns[0], web[0]) == (200, 201)
    items = (await client.ask("GET", "/pushes"))[1]["items"]
    assert [(i["provider"], i["token"], i["title"], i["collapse_id"]) for i in items] == [
        ("apns", "a", "T", "c"),
        ("webpush", "w", "", "x"),
    ]
    assert items[0]["data"] == {"message_id": "m"}
    assert 98 <= items[0]["ttl_seconds"] <= 100
    assert (await client.ask("POST", "/webpush/w", data=b""))[0] == 400
    assert (await client.ask("POST", "/3/device/a", headers={"Authorization": "bearer x"}, json={}))[1] == {
        "reason": "MissingTopic"
    }


async def test_reading_goes_on_from_a_cursor(client: Client) -> None:
    for n in range(5):
        client.sandbox.mailbox.add("fcm", Told(f"t{n % 2}"), REAL_MS())
    page = (await client.ask("GET", "/pushes?limit=2"))[1]
    assert ([i["n"] for i in page["items"]], page["next"]) == ([1, 2], "2")
    page = (await client.ask("GET", f"/pushes?limit=9&since={page['next']}"))[1]
    assert ([i["n"] for i in page["items"]], page["next"]) == ([3, 4, 5], None)
    page = (await client.ask("GET", "/pushes?token=t1"))[1]
    assert [i["n"] for i in page["items"]] == [2, 4]
    assert (await client.ask("GET", "/pushes?since=x"))[0] == 400
    await client.ask("DELETE", "/pushes")
    count = (await client.ask("GET", "/pushes/count"))[1]
    assert (count["count"], count["last"]) == (0, 5)
    assert client.sandbox.mailbox.add("fcm", Told("t"), REAL_MS()).n == 6


def test_memory_is_bounded_and_the_count_is_not() -> None:
    mailbox = Mailbox(capacity=10)
    for n in range(25):
        mailbox.add("fcm", Told(f"t{n}"), 0)
    assert (len(mailbox), mailbox.counts["fcm"]) == (10, 25)
    assert [a.n for a in mailbox.since(0, None, 3)[0]] == [16, 17, 18]
    assert [a.n for a in mailbox.since(23, None, 3)[0]] == [24, 25]
    assert mailbox.since(25, None, 3) == ([], None)


def test_a_share_of_failures_is_met_exactly() -> None:
    """Two runs of a demo must count alike, so chance plays no part."""
    behaviours = Behaviours()
    behaviours.set(Behaviour("500", share=0.1))
    modes = [behaviours.next("fcm", "t").mode for _ in range(1000)]
    assert modes.count("500") == 100
    assert modes[:10].count("500") == 1


async def test_a_phone_without_the_app_answers_as_fcm_does_and_only_that_phone(client: Client) -> None:
    """Its token is dead, whatever else the sandbox was told to do."""
    bearer = await client.bearer()
    await client.ask("PUT", "/behaviour", json={"mode": "500"})
    assert (await client.ask("DELETE", "/devices/t%2F1"))[0] == 200
    status, answer = await client.send(bearer, {"token": "t/1"})
    assert (status, answer["error"]["details"][0]["errorCode"]) == (404, "UNREGISTERED")
    assert (await client.send(bearer, {"token": "t2"}))[0] == 500


async def test_why_is_answered_for_what_arrived_and_by_an_installation_only(client: Client) -> None:
    """By itself the sandbox says so; a made-up number asks nobody."""
    client.sandbox.mailbox.add("fcm", Told("t", data={"message_id": "2601-abc"}), REAL_MS())
    client.sandbox.mailbox.add("fcm", Told("t"), REAL_MS())
    assert [(await client.ask("GET", f"/pushes/{n}/why"))[0] for n in (1, 2, 3, 10**30)] == [503, 404, 404, 404]
    assert (await client.ask("GET", "/pushes/1/why"))[1]["code"] == "on_its_own"


def test_a_dead_token_stays_dead() -> None:
    behaviours = Behaviours()
    behaviours.set(Behaviour("unregistered", share=0.3))
    tokens = [f"t{n}" for n in range(1000)]
    dead = {t for t in tokens if behaviours.next("fcm", t).mode == "unregistered"}
    assert 250 < len(dead) < 350
    assert dead == {t for t in tokens if behaviours.next("fcm", t).mode == "unregistered"}


async def test_the_page_loads_nothing_from_elsewhere_and_runs_no_script_but_its_own(client: Client) -> None:
    async with client.session.get(client.url + "/") as answer:
        policy, page = answer.headers["Content-Security-Policy"], await answer.text()
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert page.count(f'nonce="{nonce}"') == 2
    assert "{{nonce}}" not in page
    assert "default-src 'none'" in policy
    assert "http://" not in page
    assert "https://" not in page
    for unsafe in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", "unsafe-inline"):
        assert unsafe not in page + policy


async def test_it_runs_as_a_process_and_leaves_on_a_signal() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.demo.sandbox",
        env=os.environ | {"PERENNIAL_SANDBOX_PORT": str(port)},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        first = await asyncio.wait_for(process.stderr.readline(), 20)
        assert b'"listening"' in first
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/healthz") as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
