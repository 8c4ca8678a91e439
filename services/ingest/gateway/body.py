"""How a request's body is read: as it comes, never more of it than allowed, inflated where it is gzip."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from services.ingest.domain.intake_http import MAX_BATCH_BYTES, Refused
from services.ingest.gateway.budget import Budget

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_GZIP = b"\x1f\x8b"
TOO_LARGE = Refused(
    413,
    "body_too_large",
    f"a body may have {MAX_BATCH_BYTES} bytes, also after inflation",
)
OVERLOADED = Refused(429, "overloaded", "too much waits for the broker already; try again later")
SLOW = Refused(408, "slow_body", "the body did not arrive in time")
GONE = Refused(400, "client_gone", "the client closed the connection")


async def read_body(receive: Receive, announced: int, budget: Budget, seconds: float) -> bytes | Refused:
    """The raw body. What it returns was taken from the budget; a refusal has given everything back."""
    if announced > MAX_BATCH_BYTES:
        return TOO_LARGE
    message = await receive()
    if message["type"] != "http.request":
        return GONE
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > MAX_BATCH_BYTES:
            return TOO_LARGE
        return body if budget.take(len(body)) else OVERLOADED
    return await _read_rest(receive, body, budget, seconds)


async def _read_rest(receive: Receive, first: bytes, budget: Budget, seconds: float) -> bytes | Refused:
    parts: list[bytes] = []
    size = 0
    refused: Refused | None = None
    try:
        async with asyncio.timeout(seconds):
            part, more = first, True
            while True:
                if size + len(part) > MAX_BATCH_BYTES:
                    refused = TOO_LARGE
                    break
                if not budget.take(len(part)):
                    refused = OVERLOADED
                    break
                size += len(part)
                parts.append(part)
                if not more:
                    break
                message = await receive()
                if message["type"] != "http.request":
                    refused = GONE
                    break
                part, more = message.get("body", b""), message.get("more_body", False)
    except TimeoutError:
        refused = SLOW
    except BaseException:
        budget.give(size)
        raise
    if refused is not None:
        budget.give(size)
        return refused
    return b"".join(parts)


def inflate(body: bytes, encoding: bytes) -> bytes | Refused:
    """The body as JSON text; gzip is told by the header or by its first bytes, and never inflated beyond the limit."""
    if body[:2] != _GZIP:
        match encoding.strip().lower():
            case b"" | b"identity":
                return body
            case b"gzip" | b"x-gzip":
                return Refused(400, "bad_gzip", "Content-Encoding says gzip, but the body is not")
        return Refused(400, "unsupported_encoding", "a body is sent as it is or as gzip")
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(body, MAX_BATCH_BYTES + 1)
    except zlib.error as error:
        return Refused(400, "bad_gzip", f"the body is not valid gzip: {error}")
    if len(plain) > MAX_BATCH_BYTES:
        return TOO_LARGE
    if not inflater.eof or inflater.unused_data:
        return Refused(400, "bad_gzip", "the gzip body is cut short, or something follows it")
    return plain
