"""How a push is handed to Firebase Cloud Messaging (HTTP v1), and what each of its answers means.

Protocol: https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages
"""

from __future__ import annotations

from collections.abc import Callable
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from services.notifier.transports.oauth import AccessToken, ServiceAccount, TokenRefused, TokenUnavailable
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

_MAX_TTL_SECONDS = 2_419_200
_THROTTLED_SECONDS = 60.0
"""FCM's advice where a 429 names no time."""


class _Named(msgspec.Struct):
    name: str = ""


class _Violation(msgspec.Struct):
    field: str = ""


class _Detail(msgspec.Struct, rename="camel"):
    error_code: str = ""
    field_violations: list[_Violation] = []


class _Error(msgspec.Struct):
    status: str = ""
    message: str = ""
    details: list[_Detail] = []


class _ErrorAnswer(msgspec.Struct):
    error: _Error


class FcmTransport:
    """One attempt per `send`, over kept-alive connections; only a 401 is answered by a second one with a new
    token, as it says that the first was not taken. `base_url` lets a sandbox stand in for Google. To be made
    inside a running event loop."""

    name = "fcm"

    def __init__(
        self,
        account: ServiceAccount,
        real_ms: Callable[[], int],
        base_url: str = "https://fcm.googleapis.com",
        timeout_seconds: float = 10.0,
        connections: int = 100,
    ) -> None:
        traces = aiohttp.TraceConfig()
        traces.on_request_headers_sent.append(_written)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=30, ttl_dns_cache=60),
            timeout=aiohttp.ClientTimeout(total=timeout_seconds, connect=timeout_seconds / 2),
            trace_configs=[traces],
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True,
        )
        self._token = AccessToken(account, self._session, real_ms)
        self._real_ms = real_ms
        self._url = URL(f"{base_url.rstrip('/')}/v1/projects/{account.project_id}/messages:send")

    async def send(self, push: Push) -> Outcome:
        body = message_body(push, self._real_ms())
        token = ""
        for _ in range(2):
            try:
                token = await self._token.get(refused=token)
            except TokenRefused as error:
                return Unauthorised(str(error))
            except TokenUnavailable as error:
                return Unavailable(str(error))
            outcome = await self._attempt(body, token)
            if outcome is not None:
                return outcome
        return Unauthorised("401 with a new token")

    async def close(self) -> None:
        await self._token.close()
        await self._session.close()

    async def _attempt(self, body: bytes, token: str) -> Outcome | None:
        """None: the token was turned down, and nothing was sent."""
        wire = SimpleNamespace(written=False)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        status: int | None = None
        answer = b""
        try:
            async with self._session.post(
                self._url, data=body, headers=headers, trace_request_ctx=wire, allow_redirects=False
            ) as response:
                status = response.status
                retry_after = response.headers.get("Retry-After")
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            if status == 200:
                return Sent("")
            return Unknown(what) if wire.written else Unavailable(what)
        if status == 200:
            name: str = _decoded(answer, _Named).name
            return Sent(name) if name else Unknown("200 without the name FCM gives a message")
        return judge(status, answer, _seconds(retry_after, self._real_ms()))


async def _written(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
    # Called just before the first byte goes out: without it, nothing did. The token request has no mark.
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.written = True


def message_body(push: Push, real_ms: int) -> bytes:
    """The request's JSON. The collapse id is the same on both platforms, and replaces what is shown there."""
    ttl = max(0, min(push.ttl_seconds, _MAX_TTL_SECONDS))
    android: dict[str, Any] = {"priority": "HIGH" if push.high_priority else "NORMAL", "ttl": f"{ttl}s"}
    apns = {
        "apns-expiration": str(real_ms // 1000 + ttl) if ttl else "0",
        "apns-priority": "10" if push.high_priority else "5",
    }
    if push.collapse_id:
        android["collapse_key"] = push.collapse_id
        android["notification"] = {"tag": push.collapse_id}
        apns["apns-collapse-id"] = push.collapse_id
    return msgspec.json.encode(
        {
            "message": {
                "token": push.token,
                "notification": {"title": push.title, "body": push.body},
                "data": {**push.data, "message_id": push.message_id},
                "android": android,
                "apns": {"headers": apns},
            }
        }
    )


def judge(status: int, answer: bytes, retry_after: float | None) -> Outcome | None:
    """What an answer other than 200 means; None for a bearer token that was turned down.

    A 502 or 504 without FCM's own error comes from something in between: whether FCM took the message is
    not known.
    """
    error = _decoded(answer, _ErrorAnswer).error
    code = next((d.error_code for d in error.details if d.error_code), "")
    what = f"{status} {code or error.status}: {error.message}".rstrip(": ")
    match status:
        case 400:
            fields = {v.field for d in error.details for v in d.field_violations}
            return TokenDead(what) if "message.token" in fields else Refused(what)
        case 401:
            return Unauthorised(what) if code == "THIRD_PARTY_AUTH_ERROR" else None
        case 403:
            return Refused(what) if code == "SENDER_ID_MISMATCH" else Unauthorised(what)
        case 404:
            return TokenDead(what) if code == "UNREGISTERED" else Refused(what)
        case 408:
            return Unavailable(what, retry_after)
        case 429:
            return Throttled(_THROTTLED_SECONDS if retry_after is None else retry_after)
        case 502 | 504 if not code:
            return Unknown(what)
        case _ if status >= 500:
            return Unavailable(what, retry_after)
        case _:
            return Refused(what)


def _seconds(retry_after: str | None, real_ms: int) -> float | None:
    """Retry-After is a number of seconds or an HTTP date (RFC 9110, 10.2.3)."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        try:
            return max(0.0, parsedate_to_datetime(retry_after).timestamp() - real_ms / 1000)
        except ValueError:
            return None


def _decoded(answer: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _ErrorAnswer(_Error()) if kind is _ErrorAnswer else kind()
