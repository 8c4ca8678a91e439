"""What goes back to a client: success, refusals, and what browsers want to know before they post.

A page of any origin may post, also with credentials (`navigator.sendBeacon` always sends them): nothing here looks at
a cookie, and a write key is no secret.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from services.ingest.domain.intake_http import Refused
from services.ingest.domain.strict import Reject

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

METHODS = b"POST, OPTIONS"
_JSON = (b"content-type", b"application/json")
_SUCCESS_BODY = b'{"success": true}'
_EXPOSED = (b"access-control-expose-headers", b"retry-after")
"""A page's script is shown no header that is not named as one it may see."""
_ANYONE: Headers = [(b"access-control-allow-origin", b"*"), _EXPOSED]
_SUCCESS_START: dict[str, Any] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [_JSON, _ANYONE[0], (b"content-length", str(len(_SUCCESS_BODY)).encode())],
}
_SUCCESS: dict[str, Any] = {"type": "http.response.body", "body": _SUCCESS_BODY}
_USUAL_HEADERS = b"authorization, content-type, content-encoding, x-retry-count"
_MOST_ASKED_BYTES = 1024
_AGAIN = {408, 429, 500, 503}
_CLOSING = {"slow_body", "stopping"}
"""Behind these nothing more is read from the connection."""


def allowed(origin: bytes) -> Headers:
    """The headers that let a page of this origin read an answer."""
    if not origin:
        return _ANYONE
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-credentials", b"true"),
        _EXPOSED,
        (b"vary", b"origin"),
    ]


async def success(send: Send, origin: bytes) -> None:
    if origin:
        await _answer(send, 200, _SUCCESS_BODY, allowed(origin))
    else:
        await send(_SUCCESS_START)
        await send(_SUCCESS)


async def strict_success(send: Send, origin: bytes, rejects: list[Reject]) -> None:
    """Every event is in the log; `rejected` names those that ingest will reject."""
    rejected = [{"index": r.place, "message_id": r.message_id, "reason": r.reason} for r in rejects]
    await _answer(send, 200, json.dumps({"success": True, "rejected": rejected}).encode(), allowed(origin))


async def preflight(send: Send, origin: bytes, asked_headers: bytes) -> None:
    """A browser asks what it may post: any header it names is let through, for SDKs add their own."""
    named = asked_headers if 0 < len(asked_headers) <= _MOST_ASKED_BYTES else _USUAL_HEADERS
    headers = [
        *allowed(origin),
        (b"access-control-allow-methods", METHODS),
        (b"access-control-allow-headers", named),
        (b"access-control-max-age", b"86400"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body"})


async def refusal(send: Send, origin: bytes, refused: Refused) -> None:
    headers = list(allowed(origin))
    if refused.status in _AGAIN:
        headers.append((b"retry-after", str(max(1, refused.retry_seconds)).encode()))
    if refused.status == 405:
        headers.append((b"allow", METHODS))
    if refused.code in _CLOSING:
        headers.append((b"connection", b"close"))
    await _answer(
        send, refused.status, json.dumps({"code": refused.code, "message": refused.message}).encode(), headers
    )


async def _answer(send: Send, status: int, body: bytes, headers: Headers) -> None:
    given = [_JSON, *headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": given})
    await send({"type": "http.response.body", "body": body})
