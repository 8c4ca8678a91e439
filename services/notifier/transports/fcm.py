"""How a push is handed to Firebase Cloud Messaging (HTTP v1), and what each of its answers means.

Protocol: https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec
from pyreqwest.client import ClientBuilder
from pyreqwest.exceptions import (
    BuilderError,
    ClientClosedError,
    DetailedPyreqwestError,
    PoolTimeoutError,
    PyreqwestError,
)

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
SILENT = "silent"
"""The Android channel of what makes no noise."""
_THROTTLED_SECONDS = 60.0
"""FCM's advice where a 429 names no time."""
_NO_CONNECTION = "client error (Connect)"
"""What hyper says where there was no connection to write to: refused, unknown host, TLS, or late. The exceptions' names
do not tell: a connection that breaks after the request was written is a ConnectError, too."""


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
        half = timedelta(seconds=timeout_seconds / 2)
        self._client = (
            ClientBuilder()
            .http1_only()
            .no_proxy()
            .follow_redirects(False)
            .max_connections(connections)
            .pool_idle_timeout(timedelta(seconds=30))
            .pool_timeout(half)
            .connect_timeout(half)
            .timeout(timedelta(seconds=timeout_seconds))
            .build()
        )
        self._token = AccessToken(account, self._client, real_ms)
        self._real_ms = real_ms
        self._url = f"{base_url.rstrip('/')}/v1/projects/{account.project_id}/messages:send"

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
        await self._client.close()

    async def _attempt(self, body: bytes, token: str) -> Outcome | None:
        """None: the token was turned down, and nothing was sent."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        status: int | None = None
        try:
            request = self._client.post(self._url).headers(headers).body_bytes(body)
            async with request.build_streamed() as response:
                status = response.status
                retry_after = response.get_header("Retry-After")
                answer = bytes(await response.bytes())
        except PyreqwestError as error:
            what = ": ".join(_causes(error)[1:]) or error.message
            if status == 200:
                return Sent("")
            return Unavailable(what) if _never_written(error) else Unknown(what)
        if status == 200:
            name: str = _decoded(answer, _Named).name
            return Sent(name) if name else Unknown("200 without the name FCM gives a message")
        return judge(status, answer, _seconds(retry_after, self._real_ms()))


def _never_written(error: PyreqwestError) -> bool:
    """Whether certainly nothing went out; what is not known to be so may be on the phone."""
    if isinstance(error, BuilderError | ClientClosedError | PoolTimeoutError):
        return True
    return _NO_CONNECTION in _causes(error)


def _causes(error: PyreqwestError) -> list[str]:
    """What led to it, outermost first."""
    causes = error.details["causes"] if isinstance(error, DetailedPyreqwestError) else None
    return [cause["message"] for cause in causes or ()]


def message_body(push: Push, real_ms: int) -> bytes:
    """The request's JSON. The collapse id is the same on both platforms, and replaces what is shown there.

    Without sound it goes to the channel `silent` on Android, which the app makes with low importance (before Android 8
    the priority does it), and as passive on iOS. What takes a notification away is data alone: FCM has no word for it,
    so the app removes what it shows under the tag, on iOS under the identifier, which are both the collapse id.
    """
    ttl = max(0, min(push.ttl_seconds, _MAX_TTL_SECONDS))
    urgent = push.high_priority and push.sound
    android: dict[str, Any] = {"priority": "HIGH" if urgent else "NORMAL", "ttl": f"{ttl}s"}
    headers = {
        "apns-expiration": str(real_ms // 1000 + ttl) if ttl else "0",
        "apns-priority": "10" if urgent else "5",
    }
    data = {
        **push.data,
        "message_id": push.message_id,
        "action": push.action,
        "sound": "1" if push.sound else "0",
        "expires_at": str(real_ms + ttl * 1000),
    }
    message: dict[str, Any] = {"token": push.token, "data": data, "android": android}
    if push.collapse_id:
        data["collapse_id"] = android["collapse_key"] = headers["apns-collapse-id"] = push.collapse_id
    if push.action == "retract":
        headers["apns-push-type"] = "background"
        aps: dict[str, Any] = {"content-available": 1}
    else:
        message["notification"] = {"title": push.title, "body": push.body}
        shown = {"tag": push.collapse_id} if push.collapse_id else {}
        if push.sound:
            android["notification"] = {**shown, "sound": "default"}
            aps = {"sound": "default"}
        else:
            android["notification"] = {**shown, "channel_id": SILENT, "notification_priority": "PRIORITY_LOW"}
            aps = {"interruption-level": "passive"}
    message["apns"] = {"headers": headers, "payload": {"aps": aps}}
    return msgspec.json.encode({"message": message})


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
