"""How a tracking call is answered: read, judge, hand to the collector, wait for the broker.

These paths are served before the framework's routing, which would cost more than they do.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

from services.ingest.domain import intake_http
from services.ingest.domain.intake_http import Event, Refused
from services.ingest.gateway.body import OVERLOADED, Receive, inflate, read_body
from services.ingest.gateway.broker import Outlet
from services.ingest.gateway.budget import Budget
from services.ingest.gateway.collector import Collector, Outcome
from services.ingest.gateway.keys import KeyBook
from services.ingest.gateway.records import (
    RECORD_OVERHEAD_BYTES,
    Place,
    records_by_partition,
)
from shared.process.clock import Clock, monotonic
from shared.process.metrics import GATEWAY_BROKER_AWAY, GATEWAY_EVENTS, GATEWAY_REQUESTS, GATEWAY_SECONDS

log = logging.getLogger("perennial.gateway")

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Call(NamedTuple):
    """What a path takes: a batch, or one event of `kind`."""

    kind: str
    batch: bool = False
    mode: str = "live"


_BATCH = Call("batch", batch=True)
CALLS: dict[str, Call] = {
    **{f"/v1/{kind}": Call(kind) for kind in ("track", "identify", "screen", "page", "group", "alias")},
    "/v1/batch": _BATCH,
    "/v1/b": _BATCH,
    "/v1/import": Call("import", batch=True, mode="import"),
}
SHORT = {
    "t": "track",
    "i": "identify",
    "s": "screen",
    "p": "page",
    "g": "group",
    "a": "alias",
}
"""The one-letter paths of browser SDKs."""
_ROUTES = {
    path + slash: call
    for slash in ("", "/")
    for path, call in (
        *CALLS.items(),
        *((f"/v1/{short}", CALLS[f"/v1/{kind}"]) for short, kind in SHORT.items()),
    )
}

NO_KEY = Refused(
    401,
    "unauthorized",
    "name a write key: Basic base64(key:), Bearer key, or writeKey in the body",
)
WRONG_KEY = Refused(401, "unauthorized", "this write key is not known, or was revoked")
KEYS_UNKNOWN = Refused(503, "not_ready", "the write keys are not known yet; try again")
FAILED = Refused(503, "broker_unavailable", "the events were not acknowledged; send them again")
LATE = Refused(503, "broker_slow", "the events were not acknowledged in time; send them again")
STOPPING = Refused(503, "stopping", "this gateway is being stopped; send the events again")
BUG = Refused(500, "internal_error", "the gateway failed on this request; send it again")

_JSON = (b"content-type", b"application/json")
_OPEN = (b"access-control-allow-origin", b"*")
_SUCCESS_BODY = b'{"success": true}'
_SUCCESS_START: dict[str, Any] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [_JSON, _OPEN, (b"content-length", str(len(_SUCCESS_BODY)).encode())],
}
_SUCCESS: dict[str, Any] = {"type": "http.response.body", "body": _SUCCESS_BODY}
_PREFLIGHT: dict[str, Any] = {
    "type": "http.response.start",
    "status": 204,
    "headers": [
        _OPEN,
        (b"access-control-allow-methods", b"POST, OPTIONS"),
        (
            b"access-control-allow-headers",
            b"authorization, content-type, content-encoding, x-retry-count",
        ),
        (b"access-control-max-age", b"86400"),
    ],
}


class Tracking:
    """The ASGI application: tracking calls itself, everything else by `rest`."""

    def __init__(
        self,
        rest: App,
        keys: KeyBook,
        collector: Collector,
        outlet: Outlet,
        budget: Budget,
        place: Place,
        clock: Clock,
        body_seconds: float = 10.0,
    ) -> None:
        self._rest, self._keys, self._collector, self._outlet = (
            rest,
            keys,
            collector,
            outlet,
        )
        self._budget, self._place, self._clock, self._body_seconds = (
            budget,
            place,
            clock,
            body_seconds,
        )
        # a rate misses the first of a new series, so those that call for somebody stand at zero from the start
        self._answered = {status: GATEWAY_REQUESTS.labels(str(status)) for status in (200, 429, 500, 503)}
        GATEWAY_BROKER_AWAY.set_function(lambda: float(bool(outlet.away)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = _ROUTES.get(scope["path"]) if scope["type"] == "http" else None
        if call is None:
            await self._rest(scope, receive, send)
            return
        method = scope["method"]
        if method == "OPTIONS":
            await send(_PREFLIGHT)
            await send({"type": "http.response.body"})
            return
        began = monotonic()
        refused: Refused | None
        if method == "POST":
            try:
                refused = await self._answer(call, scope, receive)
            except Exception:
                log.exception("a request failed")
                refused = BUG
        else:
            refused = Refused(405, "method_not_allowed", f"{scope['path']} takes POST")
        status = refused.status if refused else 200
        counter = self._answered.get(status)
        if counter is None:
            counter = self._answered[status] = GATEWAY_REQUESTS.labels(str(status))
        counter.inc()
        GATEWAY_SECONDS.observe(monotonic() - began)
        if refused is None:
            await send(_SUCCESS_START)
            await send(_SUCCESS)
        else:
            await _refuse(send, refused)

    async def _answer(self, call: Call, scope: Scope, receive: Receive) -> Refused | None:
        """None once every event is acknowledged."""
        authorization, encoding, announced = _headers(scope)
        if not self._keys.known:
            return KEYS_UNKNOWN
        source: str | None = None
        if authorization:
            source = self._keys.source_by_header(authorization)
            if source is None and not _names_nobody(authorization):
                return WRONG_KEY
        raw = await read_body(receive, announced, self._budget, self._body_seconds)
        if isinstance(raw, Refused):
            return raw
        held = len(raw)
        try:
            received_at = self._clock.now_ms()
            read = self._read(call, raw, encoding, source)
            if isinstance(read, Refused):
                return read
            source, events, size = read
            if self._outlet.away or self._collector.closing:
                return STOPPING if self._collector.closing else FAILED
            need = size + len(events) * RECORD_OVERHEAD_BYTES
            if not self._budget.take(need):
                return OVERLOADED
        finally:
            self._budget.give(held)
        count = len(events)
        groups = records_by_partition(events, source, call.mode, received_at, self._place)
        outcome = await self._collector.post(groups, need)
        if outcome is Outcome.ACKNOWLEDGED:
            GATEWAY_EVENTS.inc(count)
            return None
        return LATE if outcome is Outcome.LATE else FAILED

    def _read(
        self, call: Call, raw: bytes, encoding: bytes, source: str | None
    ) -> tuple[str, list[Event], int] | Refused:
        body = inflate(raw, encoding)
        if isinstance(body, Refused):
            return body
        opened = intake_http.open_batch(body) if call.batch else intake_http.open_single(body)
        if isinstance(opened, Refused):
            return opened
        if source is None:
            key = opened.write_key
            if not isinstance(key, str) or not key:
                return NO_KEY
            source = self._keys.source_of(key)
            if source is None:
                return WRONG_KEY
        if isinstance(opened, intake_http.BatchBody):
            return source, intake_http.batch(opened), len(body)
        event = intake_http.single(opened, call.kind, body)
        return event if isinstance(event, Refused) else (source, [event], len(body))


def _headers(scope: Scope) -> tuple[bytes, bytes, int]:
    authorization = encoding = b""
    announced = 0
    for name, value in scope["headers"]:
        if name == b"authorization":
            authorization = value
        elif name == b"content-encoding":
            encoding = value
        elif name == b"content-length" and value.isdigit():
            announced = int(value[:20])
    return authorization, encoding, announced


def _names_nobody(authorization: bytes) -> bool:
    """A header without any credential, as some clients send it beside `writeKey`."""
    return not authorization.partition(b" ")[2].strip() or authorization.strip().lower() == b"basic og=="


async def _refuse(send: Send, refused: Refused) -> None:
    body = json.dumps({"code": refused.code, "message": refused.message}).encode()
    headers = [_JSON, _OPEN, (b"content-length", str(len(body)).encode())]
    if refused.status in (429, 503, 408, 500):
        # a page's script is shown no header that is not named as one it may see
        headers += [(b"retry-after", b"1"), (b"access-control-expose-headers", b"retry-after")]
    if refused.status == 405:
        headers.append((b"allow", b"POST, OPTIONS"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
