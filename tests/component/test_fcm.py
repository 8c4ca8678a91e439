"""What the FCM transport makes of every answer, and of none, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from services.demo.sandbox import Sandbox, start
from services.demo.sandbox_store import Behaviour
from services.demo.service_account import service_account
from services.notifier.transports.fcm import FcmTransport, judge, message_body
from services.notifier.transports.oauth import ServiceAccount
from services.notifier.transports.push import (
    Outcome,
    Push,
    Refused,
    Sent,
    Throttled,
    TokenDead,
    Unauthorised,
    Unavailable,
    Unknown,
)
from shared.process.clock import Clock

REAL_MS = Clock().real_ms
ACCOUNT = service_account("http://unset")
Served = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def push(number: int = 1, **changes: Any) -> Push:
    base = Push(f"m{number}", "token-1", "Title", "Body", {"campaign": "welcome"}, "welcome.1", 90, True)
    return msgspec.structs.replace(base, **changes)


class Bench:
    """A sandbox, and transports to it or (for the push itself) to another server."""

    def __init__(self, sandbox: Sandbox, port: int, stack: AsyncExitStack) -> None:
        self.sandbox, self.stack = sandbox, stack
        self.url = f"http://127.0.0.1:{port}"
        self.tokens_issued = 0
        issue = sandbox.tokens.issue

        def counted(token: str, real_ms: int) -> None:
            self.tokens_issued += 1
            issue(token, real_ms)

        sandbox.tokens.issue = counted  # type: ignore[method-assign]

    def transport(self, base_url: str = "", real_ms: Callable[[], int] = REAL_MS, **changes: Any) -> FcmTransport:
        account = msgspec.convert(ACCOUNT | {"token_uri": f"{self.url}/token"} | changes, ServiceAccount)
        made = FcmTransport(account, real_ms, base_url or self.url, timeout_seconds=0.6)
        self.stack.push_async_callback(made.close)
        return made

    async def serve(self, served: Served) -> str:
        open_now: set[asyncio.Task[None]] = set()

        async def tracked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            open_now.add(task)
            try:
                await served(reader, writer)
            finally:
                open_now.discard(task)
                writer.close()

        async def close() -> None:
            server.close()
            for task in list(open_now):
                task.cancel()
            await asyncio.gather(*open_now, return_exceptions=True)
            await asyncio.sleep(0)

        server = await asyncio.start_server(tracked, "127.0.0.1", 0)
        self.stack.push_async_callback(close)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def arrived(self) -> list[str]:
        return [a.data["message_id"] for a in self.sandbox.mailbox.since(0, None, 1000)[0]]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        sandbox = Sandbox(REAL_MS)
        port = await start(sandbox, stack, "127.0.0.1", 0)
        async with AsyncExitStack() as transports:
            yield Bench(sandbox, port, transports)


def raw_answer(status: str, body: bytes = b"", headers: str = "") -> Served:
    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _whole_request(reader)
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    return served


async def _whole_request(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    await reader.readexactly(int(head.split("content-length:")[1].split("\r\n")[0]))


async def test_a_push_arrives_as_it_was_given(bench: Bench) -> None:
    outcome = await bench.transport().send(push())
    assert isinstance(outcome, Sent)
    assert outcome.provider_ref.startswith("projects/perennial-demo/messages/")
    (arrived,), _ = bench.sandbox.mailbox.since(0, None, 10)
    assert (arrived.provider, arrived.token, arrived.title, arrived.body) == ("fcm", "token-1", "Title", "Body")
    told = {name: arrived.data.pop(name) for name in ("campaign", "message_id", "action", "sound", "collapse_id")}
    assert told == {
        "campaign": "welcome", "message_id": "m1", "action": "show", "sound": "1", "collapse_id": "welcome.1",
    }  # fmt: skip
    assert abs(int(arrived.data.pop("expires_at")) - REAL_MS() - 90_000) < 10_000 and arrived.data == {}
    assert (arrived.collapse_id, arrived.ttl_seconds) == ("welcome.1", 90)


def test_both_platforms_are_told_the_same() -> None:
    """One collapse id and one end on Android and iOS; without them a phone shows the alert twice, or too late."""
    message = msgspec.json.decode(message_body(push(), 1_000_000_500))["message"]
    assert message["android"] == {
        "priority": "HIGH",
        "ttl": "90s",
        "collapse_key": "welcome.1",
        "notification": {"tag": "welcome.1", "sound": "default"},
    }
    assert message["apns"]["headers"] == {
        "apns-collapse-id": "welcome.1",
        "apns-expiration": "1000090",
        "apns-priority": "10",
    }
    assert message["apns"]["payload"] == {"aps": {"sound": "default"}}
    assert message["data"]["expires_at"] == str(1_000_090_500)
    never_stored = msgspec.json.decode(message_body(push(ttl_seconds=0, high_priority=False, collapse_id=""), 0))
    assert never_stored["message"]["apns"]["headers"] == {"apns-expiration": "0", "apns-priority": "5"}
    assert never_stored["message"]["android"] == {
        "priority": "NORMAL", "ttl": "0s", "notification": {"sound": "default"},
    }  # fmt: skip


def test_a_silent_push_names_no_sound_and_one_that_takes_away_has_no_text() -> None:
    """Android makes a noise by channel, iOS by `sound`; FCM cannot remove what is shown, so the app is told by data."""
    silent = msgspec.json.decode(message_body(push(action="replace", sound=False), 0))["message"]
    assert silent["notification"] == {"title": "Title", "body": "Body"}
    assert silent["android"]["priority"] == "NORMAL" and silent["apns"]["headers"]["apns-priority"] == "5"
    assert silent["android"]["notification"] == {
        "tag": "welcome.1", "channel_id": "silent", "notification_priority": "PRIORITY_LOW",
    }  # fmt: skip
    assert silent["apns"]["payload"] == {"aps": {"interruption-level": "passive"}}
    assert (silent["data"]["action"], silent["data"]["sound"]) == ("replace", "0")
    away = msgspec.json.decode(message_body(push(action="retract", sound=False, title="", body=""), 0))["message"]
    assert "notification" not in away and "notification" not in away["android"]
    assert away["data"]["action"] == "retract" and away["data"]["collapse_id"] == "welcome.1"
    assert away["apns"]["headers"]["apns-push-type"] == "background"
    assert away["apns"]["payload"] == {"aps": {"content-available": 1}}


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("429", Throttled),
        ("500", Unavailable),
        ("503", Unavailable),
        ("unregistered", TokenDead),
        ("bad_token", TokenDead),
        ("hang", Unknown),
        ("reset", Unknown),
    ],
)
async def test_each_failure_has_its_class(bench: Bench, mode: Any, kind: type[Outcome]) -> None:
    bench.sandbox.behaviours.set(Behaviour(mode, retry_after_seconds=7))
    outcome = await bench.transport().send(push())
    assert isinstance(outcome, kind), outcome
    assert bench.arrived() == []
    if isinstance(outcome, Throttled):
        assert outcome.retry_after_seconds == 7
    if mode == "503":
        assert outcome == msgspec.structs.replace(outcome, retry_after_seconds=7.0)


async def test_an_answer_lost_after_acceptance_is_unknown_and_not_tried_again(bench: Bench) -> None:
    """To the sender it looks just like a loss before acceptance; a hidden retry would push twice."""
    bench.sandbox.behaviours.set(Behaviour("accept_then_reset"))
    assert isinstance(await bench.transport().send(push()), Unknown)
    assert bench.arrived() == ["m1"]


async def test_a_kept_alive_connection_that_breaks_is_unknown_and_not_tried_again(bench: Bench) -> None:
    transport = bench.transport()
    assert isinstance(await transport.send(push(1)), Sent)
    bench.sandbox.behaviours.set(Behaviour("accept_then_reset"))
    assert isinstance(await transport.send(push(2)), Unknown)
    assert bench.arrived() == ["m1", "m2"]


async def test_nobody_listening_is_unavailable(bench: Bench) -> None:
    """Never written: it may be sent again without a thought."""
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    assert isinstance(await bench.transport(f"http://127.0.0.1:{port}").send(push()), Unavailable)


async def test_waiting_for_a_connection_is_unavailable_not_unknown(bench: Bench) -> None:
    """With every connection held by a hanging provider, a push that timed out in the queue was never written."""
    bench.sandbox.behaviours.set(Behaviour("hang"))
    account = msgspec.convert(ACCOUNT | {"token_uri": f"{bench.url}/token"}, ServiceAccount)
    transport = FcmTransport(account, REAL_MS, bench.url, timeout_seconds=1.0, connections=1)
    bench.stack.push_async_callback(transport.close)
    outcomes = await asyncio.gather(*(transport.send(push(n)) for n in range(2)))
    assert sorted(type(o).__name__ for o in outcomes) == ["Unavailable", "Unknown"]


async def test_a_peer_that_closes_without_a_word_is_unknown(bench: Bench) -> None:
    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await _whole_request(reader)

    assert isinstance(await bench.transport(await bench.serve(silent)).send(push()), Unknown)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        ("502 Bad Gateway", b"<html>oops</html>", Unknown),
        ("504 Gateway Timeout", b"", Unknown),
        ("500 Internal Server Error", b"<html>", Unavailable),
        ("200 OK", b"<html>a captive portal</html>", Unknown),
        ("200 OK", b'{"name":"projects/p/messages/1"}', Sent),
        ("302 Found", b"", Refused),
        ("404 Not Found", b"<html>", Refused),
    ],
)
async def test_what_is_not_fcm_speaking_is_not_taken_for_it(
    bench: Bench, status: str, body: bytes, kind: type[Outcome]
) -> None:
    assert isinstance(await bench.transport(await bench.serve(raw_answer(status, body))).send(push()), kind)


def fcm_answer(error_code: str, field: str = "") -> bytes:
    details: list[dict[str, Any]] = [{"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError"}]
    details[0]["errorCode"] = error_code
    if field:
        violations = [{"field": field, "description": "no"}]
        details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations})
    return msgspec.json.encode({"error": {"code": 1, "message": "no", "status": "S", "details": details}})


@pytest.mark.parametrize(
    ("status", "code", "field", "kind"),
    [
        (400, "INVALID_ARGUMENT", "message.token", TokenDead),
        (400, "INVALID_ARGUMENT", "message.data", Refused),
        (400, "INVALID_ARGUMENT", "", Refused),
        (401, "THIRD_PARTY_AUTH_ERROR", "", Unauthorised),
        (403, "SENDER_ID_MISMATCH", "", Refused),
        (403, "PERMISSION_DENIED", "", Unauthorised),
        (404, "UNREGISTERED", "", TokenDead),
        (404, "", "", Refused),
        (429, "QUOTA_EXCEEDED", "", Throttled),
        (500, "INTERNAL", "", Unavailable),
        (503, "UNAVAILABLE", "", Unavailable),
        (502, "UNAVAILABLE", "", Unavailable),
    ],
)
def test_fcms_error_codes(status: int, code: str, field: str, kind: type[Outcome]) -> None:
    """An invalid argument is the token's death only if the token is what was wrong with it."""
    assert isinstance(judge(status, fcm_answer(code, field), None), kind)


async def test_a_retry_after_may_be_a_date(bench: Bench) -> None:
    headers = "Retry-After: Thu, 01 Jan 1970 00:02:00 GMT\r\n"
    url = await bench.serve(raw_answer("429 Too Many Requests", fcm_answer("QUOTA_EXCEEDED"), headers))
    # The sandbox refuses an assertion dated 1970, so only what reads the answer's date is set back.
    transport = bench.transport(url)
    transport._real_ms = lambda: 30_000
    assert await transport.send(push()) == Throttled(90.0)


async def test_many_sends_at_once_ask_for_one_token(bench: Bench) -> None:
    transport = bench.transport()
    outcomes = await asyncio.gather(*(transport.send(push(n)) for n in range(50)))
    assert all(isinstance(o, Sent) for o in outcomes)
    assert bench.tokens_issued == 1


async def test_a_token_is_renewed_five_minutes_before_it_expires(bench: Bench) -> None:
    ahead = [0]
    transport = bench.transport(real_ms=lambda: REAL_MS() + ahead[0])
    assert isinstance(await transport.send(push(1)), Sent)
    ahead[0] = 200_000
    bench.sandbox.tokens.lifetime_seconds = 420
    bench.sandbox.tokens.revoke_all()
    assert isinstance(await transport.send(push(2)), Sent)
    assert bench.tokens_issued == 2
    ahead[0] += 119_000 - 200_000
    assert isinstance(await transport.send(push(3)), Sent)
    assert bench.tokens_issued == 2


async def test_a_forgotten_token_is_renewed_once_and_the_push_goes_out(bench: Bench) -> None:
    """As after a restart of the sandbox, or a revoked token: the 401 says that nothing was sent."""
    transport = bench.transport()
    assert isinstance(await transport.send(push(1)), Sent)
    bench.sandbox.tokens.revoke_all()
    outcomes = await asyncio.gather(*(transport.send(push(n)) for n in range(2, 12)))
    assert all(isinstance(o, Sent) for o in outcomes)
    assert sorted(bench.arrived()) == sorted(f"m{n}" for n in range(1, 12))
    assert bench.tokens_issued == 2


async def test_a_token_that_never_works_is_not_asked_for_forever(bench: Bench) -> None:
    url = await bench.serve(raw_answer("401 Unauthorized", b"{}"))
    assert isinstance(await bench.transport(url).send(push()), Unauthorised)
    assert bench.tokens_issued == 2


async def test_a_refused_service_account_is_unauthorised(bench: Bench) -> None:
    assert isinstance(await bench.transport(client_email="").send(push()), Unauthorised)
    assert isinstance(await bench.transport(private_key="no key").send(push()), Unauthorised)


async def test_an_assertion_from_a_wrong_clock_is_unauthorised(bench: Bench) -> None:
    """Product time may be moved for a test; tokens live in the machine's."""
    outcome = await bench.transport(real_ms=lambda: REAL_MS() - 86_400_000).send(push())
    assert isinstance(outcome, Unauthorised)


async def test_a_token_endpoint_that_is_away_is_unavailable(bench: Bench) -> None:
    async def hang(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    hanging = bench.transport(token_uri=await bench.serve(hang))
    broken = bench.transport(token_uri=await bench.serve(raw_answer("503 Service Unavailable", b"<html>")))
    assert isinstance(await hanging.send(push()), Unavailable)
    assert isinstance(await broken.send(push()), Unavailable)


async def test_an_impatient_caller_does_not_take_the_token_from_the_others(bench: Bench) -> None:
    transport = bench.transport()
    first, second = (asyncio.create_task(transport.send(push(n))) for n in (1, 2))
    await asyncio.sleep(0)
    first.cancel()
    assert isinstance(await second, Sent)
    assert bench.arrived() == ["m2"]
