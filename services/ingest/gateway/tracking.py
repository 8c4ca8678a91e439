"""How a tracking call is answered: read, judge, hand to the collector, wait for the broker.

These paths are served before the framework's routing, which would cost more than they do.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

from services.ingest.domain import intake_http, strict
from services.ingest.domain.intake_http import Event, Refused
from services.ingest.domain.strict import Reject
from services.ingest.gateway import answers
from services.ingest.gateway.answers import Send
from services.ingest.gateway.body import OVERLOADED, Receive, inflate, read_body
from services.ingest.gateway.broker import Outlet
from services.ingest.gateway.budget import Budget
from services.ingest.gateway.collector import Collector, Outcome
from services.ingest.gateway.keys import KeyBook, WriteKey
from services.ingest.gateway.records import (
    RECORD_OVERHEAD_BYTES,
    Place,
    records_by_partition,
)
from shared.process.clock import Clock, monotonic
from shared.process.metrics import GATEWAY_BROKER_AWAY, GATEWAY_EVENTS, GATEWAY_REQUESTS, GATEWAY_SECONDS

log = logging.getLogger("perennial.gateway")

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
        self._rest, self._keys, self._collector, self._outlet = rest, keys, collector, outlet
        self._budget, self._place, self._clock, self._body_seconds = budget, place, clock, body_seconds
        # a rate misses the first of a new series, so those that call for somebody stand at zero from the start
        self._answered = {status: GATEWAY_REQUESTS.labels(str(status)) for status in (200, 429, 500, 503)}
        GATEWAY_BROKER_AWAY.set_function(lambda: float(bool(outlet.away)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = _ROUTES.get(scope["path"]) if scope["type"] == "http" else None
        if call is None:
            await self._rest(scope, receive, send)
            return
        asked = _asked(scope)
        if scope["method"] == "OPTIONS":
            await answers.preflight(send, asked.origin, asked.headers)
            return
        began = monotonic()
        outcome: Refused | list[Reject] | None
        if scope["method"] == "POST":
            try:
                outcome = await self._answer(call, asked, receive)
            except Exception:
                log.exception("a request failed")
                outcome = BUG
        else:
            outcome = Refused(405, "method_not_allowed", f"{scope['path']} takes POST")
        status = outcome.status if isinstance(outcome, Refused) else 200
        counter = self._answered.get(status)
        if counter is None:
            counter = self._answered[status] = GATEWAY_REQUESTS.labels(str(status))
        counter.inc()
        GATEWAY_SECONDS.observe(monotonic() - began)
        if outcome is None:
            await answers.success(send, asked.origin)
        elif isinstance(outcome, Refused):
            await answers.refusal(send, asked.origin, outcome)
        else:
            await answers.strict_success(send, asked.origin, outcome)

    async def _answer(self, call: Call, asked: _Asked, receive: Receive) -> Refused | list[Reject] | None:
        """None once every event is acknowledged; to a strict request, what ingest will reject of them."""
        if not self._keys.known:
            return KEYS_UNKNOWN
        key: WriteKey | None = None
        if asked.authorization:
            key = self._keys.by_header(asked.authorization)
            if key is None and not _names_nobody(asked.authorization):
                return WRONG_KEY
        raw = await read_body(receive, asked.announced, self._budget, self._body_seconds)
        if isinstance(raw, Refused):
            return _refused(key, raw)
        held = len(raw)
        try:
            received_at = self._clock.now_ms()
            read = self._read(call, raw, asked.encoding, key)
            if isinstance(read, Refused):
                return _refused(key, read)
            key, events, size = read
            count = len(events)
            if key.limited and (over := key.over(count)):
                return _refused(key, over)
            if self._outlet.away or self._collector.closing:
                return STOPPING if self._collector.closing else FAILED
            need = size + count * RECORD_OVERHEAD_BYTES
            if not self._budget.take(need):
                return OVERLOADED
        finally:
            self._budget.give(held)
        groups = records_by_partition(events, key.source, call.mode, received_at, self._place)
        outcome = await self._collector.post(groups, need)
        if outcome is Outcome.ACKNOWLEDGED:
            GATEWAY_EVENTS.inc(count)
            key.events += count
            return strict.rejects(events, received_at) if asked.strict else None
        return LATE if outcome is Outcome.LATE else FAILED

    def _read(
        self, call: Call, raw: bytes, encoding: bytes, key: WriteKey | None
    ) -> tuple[WriteKey, list[Event], int] | Refused:
        body = inflate(raw, encoding)
        if isinstance(body, Refused):
            return body
        opened = intake_http.open_batch(body) if call.batch else intake_http.open_single(body)
        if isinstance(opened, Refused):
            return opened
        if key is None:
            told = opened.write_key
            if not isinstance(told, str) or not told:
                return NO_KEY
            key = self._keys.by_key(told)
            if key is None:
                return WRONG_KEY
        if isinstance(opened, intake_http.BatchBody):
            return key, intake_http.batch(opened), len(body)
        event = intake_http.single(opened, call.kind, body)
        return event if isinstance(event, Refused) else (key, [event], len(body))


class _Asked:
    """What of a request's head is looked at."""

    __slots__ = ("announced", "authorization", "encoding", "headers", "origin", "strict")

    def __init__(self) -> None:
        self.authorization = self.encoding = self.origin = self.headers = b""
        self.announced = 0
        self.strict = False


def _asked(scope: Scope) -> _Asked:
    asked = _Asked()
    for name, value in scope["headers"]:
        if name == b"authorization":
            asked.authorization = value
        elif name == b"content-encoding":
            asked.encoding = value
        elif name == b"content-length" and value.isdigit():
            asked.announced = int(value[:20])
        elif name == b"origin":
            asked.origin = value
        elif name == b"access-control-request-headers":
            asked.headers = value
    if scope.get("query_string"):
        asked.strict = b"strict=1" in scope["query_string"].split(b"&")
    return asked


def _refused(key: WriteKey | None, refused: Refused) -> Refused:
    if key is not None:
        key.refused += 1
    return refused


def _names_nobody(authorization: bytes) -> bool:
    """A header without any credential, as some clients send it beside `writeKey`."""
    return not authorization.partition(b" ")[2].strip() or authorization.strip().lower() == b"basic og=="
