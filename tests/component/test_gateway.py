"""What the gateway answers to whom, and what it hands to the broker, without a broker."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.partitioner import murmur2

from services.ingest.gateway.app import make_app
from services.ingest.gateway.collector import Collector
from services.ingest.gateway.keys import KeyBook, KeyFacts
from services.ingest.gateway.settings import GatewaySettings
from services.ingest.gateway.tracking import CALLS, Tracking
from shared.data.keys import key_hash
from shared.kafka.sender import Record, SendFailed
from shared.process.clock import Clock
from shared.process.http import Health

SHARDS = 32
NOW = 1_767_323_045_678
KEY = {"authorization": "Basic " + base64.b64encode(b"demo:").decode()}
EVENT = {"type": "track", "event": "Opened", "userId": "u-1", "messageId": "m-1"}
ONE = json.dumps(EVENT).encode()
TEN = json.dumps({"batch": [EVENT] * 10}).encode()


class FixedClock(Clock):
    def now_ms(self) -> int:
        return NOW


class FakeOutlet:
    """The broker: it takes everything, refuses everything, or never answers."""

    def __init__(self) -> None:
        self.away = ""
        self.mode = "ok"
        self.taken: list[tuple[int, Record]] = []
        self.sends = 0
        self.released = asyncio.Event()

    async def send(self, partition: int, records: list[Record]) -> None:
        self.sends += 1
        if self.mode == "hang":
            await self.released.wait()
        if self.mode == "fail":
            raise SendFailed("refused")
        self.taken += [(partition, record) for record in records]

    def suspect(self) -> None:
        pass


class Answer:
    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self.status: int = messages[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in messages[0].get("headers", ())}
        self.body = b"".join(m.get("body", b"") for m in messages[1:])

    @property
    def code(self) -> str:
        told = json.loads(self.body)
        assert set(told) == {"code", "message"} and told["message"]
        return str(told["code"])


class Client:
    def __init__(self, app: Tracking, collector: Collector, outlet: FakeOutlet, keys: KeyBook, health: Health) -> None:
        self.app, self.collector, self.outlet, self.keys, self.health = app, collector, outlet, keys, health

    async def call(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, parts: int = 1
    ) -> Answer:
        given = {
            "host": "events.example",
            **({"content-length": str(len(body))} if parts == 1 else {}),
            **(headers or {}),
        }
        path, _, query = path.partition("?")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "server": ("events.example", 80),
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }
        step = max(1, -(-len(body) // parts))
        chunks = [body[i : i + step] for i in range(0, len(body), step)] or [b""]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if not chunks:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

        async def send(message: Any) -> None:
            sent.append(message)

        async with asyncio.timeout(20):
            await self.app(scope, receive, send)
        return Answer(sent)

    async def post(self, path: str, body: bytes, *, parts: int = 1, **headers: str) -> Answer:
        given = {**KEY, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return await self.call("POST", path, body, {n: v for n, v in given.items() if v}, parts)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    outlet, keys, health = FakeOutlet(), KeyBook.of(app="demo"), Health()
    settings = GatewaySettings(deadline_seconds=0.3, in_flight_bytes=1_000_000, body_seconds=0.3)
    app, collector = make_app(keys, outlet, health, FixedClock(), SHARDS, settings)
    running = asyncio.create_task(collector.run())
    yield Client(app, collector, outlet, keys, health)
    outlet.released.set()
    await collector.drain()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


BOMB = gzip.compress(b'{"batch":[' + b" " * 50_000_000 + b"]}")

HOSTILE: list[tuple[str, str, bytes, dict[str, str], int]] = [
    ("no key", "/v1/track", ONE, {"authorization": ""}, 401),
    ("a wrong key", "/v1/track", ONE, {"authorization": "Bearer nope"}, 401),
    ("a wrong key in Basic", "/v1/batch", TEN, {"authorization": "Basic bm9wZTo="}, 401),
    ("an unreadable Authorization", "/v1/batch", TEN, {"authorization": "Basic %%%"}, 401),
    ("the password in the place of the key", "/v1/track", ONE, {"authorization": "Basic OmRlbW8="}, 401),
    ("a wrong key in the body", "/v1/track", ONE[:-1] + b',"writeKey":"x"}', {"authorization": ""}, 401),
    ("a number as key", "/v1/batch", TEN[:-1] + b',"writeKey":7}', {"authorization": ""}, 401),
    (
        "a wrong header beside a good key in the body",
        "/v1/track",
        ONE[:-1] + b',"writeKey":"demo"}',
        {"authorization": "Bearer x"},
        401,
    ),
    ("no body", "/v1/track", b"", {}, 400),
    ("no body at all in a batch", "/v1/batch", b"", {}, 400),
    ("not JSON", "/v1/track", b"hello", {}, 400),
    ("not JSON, without a key", "/v1/track", b"hello", {"authorization": ""}, 400),
    ("a list", "/v1/batch", b"[" + ONE + b"]", {}, 400),
    ("a single event as batch", "/v1/batch", ONE, {}, 400),
    ("a batch as single event", "/v1/track", TEN, {}, 400),
    ("no id", "/v1/identify", b"{}", {}, 400),
    ("a number as id", "/v1/screen", b'{"userId":5}', {}, 400),
    ("NUL in an id", "/v1/page", rb'{"userId":"a\u0000b"}', {}, 400),
    ("a lone surrogate in an id", "/v1/page", rb'{"userId":"a\ud800b"}', {}, 400),
    ("no event", "/v1/track", b'{"userId":"u"}', {}, 400),
    ("an oversize event", "/v1/track", ONE[:-1] + b',"x":"' + b"y" * 33_000 + b'"}', {}, 413),
    ("an oversize event, gzipped", "/v1/track", gzip.compress(ONE[:-1] + b',"x":"' + b"y" * 33_000 + b'"}'), {}, 413),
    ("an oversize batch", "/v1/batch", b'{"batch":[' + b" " * 512_000 + b"]}", {}, 413),
    ("a lie about the length", "/v1/batch", TEN, {"content_length": "600000"}, 413),
    ("an absurd length", "/v1/batch", TEN, {"content_length": "9" * 40}, 413),
    ("a gzip bomb", "/v1/batch", BOMB, {"content_encoding": "gzip"}, 413),
    ("a gzip bomb by magic", "/v1/import", BOMB, {}, 413),
    ("gzip in name only", "/v1/batch", TEN, {"content_encoding": "gzip"}, 400),
    ("gzip cut short", "/v1/batch", gzip.compress(TEN)[:-9], {}, 400),
    ("gzip damaged", "/v1/batch", gzip.compress(TEN)[:12] + b"\xff" * 30, {}, 400),
    ("gzip with a tail", "/v1/batch", gzip.compress(TEN) + b"tail", {}, 400),
    ("gzip twice", "/v1/batch", gzip.compress(gzip.compress(TEN)), {}, 400),
    ("only the magic bytes", "/v1/batch", b"\x1f\x8b", {}, 400),
    ("deflate", "/v1/batch", zlib.compress(TEN), {"content_encoding": "deflate"}, 400),
    ("an unknown encoding", "/v1/batch", TEN, {"content_encoding": "br"}, 400),
    ("nested gzip content", "/v1/track", gzip.compress(b"[" * 400_000), {}, 413),
    ("brackets", "/v1/batch", b"[" * 400_000, {}, 400),
    ("a flood of nothings", "/v1/batch", b'{"batch":[' + b"{}," * 100_000 + b"{}]}", {}, 413),
]


@pytest.mark.parametrize(("path", "body", "headers", "status"), [c[1:] for c in HOSTILE], ids=[c[0] for c in HOSTILE])
async def test_hostile_requests(client: Client, path: str, body: bytes, headers: dict[str, str], status: int) -> None:
    """A refusal names a code and a sentence, leaves nothing in the log and nothing in memory."""
    answer = await client.post(path, body, parts=1, **headers)
    assert answer.status == status, answer.body
    assert answer.code
    assert client.outlet.taken == []
    assert client.collector._budget.used == 0
    assert (await client.post("/v1/batch", TEN)).status == 200


async def test_an_oversize_body_in_pieces_is_cut_off(client: Client) -> None:
    """Without a Content-Length only counting helps."""
    answer = await client.post("/v1/batch", b" " * 3_000_000, parts=50)
    assert (answer.status, answer.code) == (413, "body_too_large")
    assert client.collector._budget.used == 0


GOOD: list[tuple[str, str, bytes, dict[str, str]]] = [
    ("Basic", "/v1/track", ONE, {}),
    ("Bearer", "/v1/track", ONE, {"authorization": "Bearer demo"}),
    ("a key in the body", "/v1/track", ONE[:-1] + b',"writeKey":"demo"}', {"authorization": ""}),
    ("a key in the envelope", "/v1/batch", TEN[:-1] + b',"writeKey":"demo"}', {"authorization": ""}),
    (
        "an empty Basic beside a key in the body",
        "/v1/b",
        TEN[:-1] + b',"writeKey":"demo"}',
        {"authorization": "Basic Og=="},
    ),
    ("a form's content type", "/v1/batch", TEN, {"content_type": "application/x-www-form-urlencoded"}),
    ("text/plain", "/v1/batch", TEN, {"content_type": "text/plain"}),
    ("gzip", "/v1/batch", gzip.compress(TEN), {"content_encoding": "gzip"}),
    ("gzip unannounced", "/v1/batch", gzip.compress(TEN), {}),
    ("gzip of one event", "/v1/track", gzip.compress(ONE), {"content_encoding": "GZIP"}),
    ("a trailing slash", "/v1/batch/", TEN, {}),
    ("a browser's short path", "/v1/t", ONE, {}),
    ("import", "/v1/import", TEN, {}),
    ("an empty batch", "/v1/batch", b'{"batch":[]}', {}),
]


@pytest.mark.parametrize(("path", "body", "headers"), [c[1:] for c in GOOD], ids=[c[0] for c in GOOD])
async def test_good_requests(client: Client, path: str, body: bytes, headers: dict[str, str]) -> None:
    answer = await client.post(path, body, parts=1, **headers)
    assert (answer.status, answer.body) == (200, b'{"success": true}')
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_what_was_posted_is_in_raw_byte_for_byte(client: Client) -> None:
    """The partition is checked by aiokafka's own murmur2, which nothing of ours uses."""
    elements = [
        b'{ "userId" : "u-%d",\t"type":"track","event":"\\u00c9t\\u00e9 \xc3\xa9","messageId":"m-%d","x":[1.50,1e3]}'
        % (n, n)
        for n in range(200)
    ]
    body = b'{"sentAt":"2026-01-02T03:04:05.678Z","batch": [' + b" ,\n".join(elements) + b"] }"
    assert (await client.post("/v1/batch", body, parts=7)).status == 200
    assert sorted(r.value for _, r in client.outlet.taken) == sorted(elements)
    for partition, record in client.outlet.taken:
        assert record.key is not None
        assert partition == (murmur2(record.key) & 0x7FFFFFFF) % SHARDS
        n = record.key.removeprefix(b"u-").decode()
        assert record.headers == [
            ("received_at", str(NOW).encode()),
            ("sent_at", b"1767323045678"),
            ("type", b"track"),
            ("message_id", f"m-{n}".encode()),
            ("source", b"app"),
            ("mode", b"live"),
        ]


@pytest.mark.parametrize("kind", ["track", "identify", "screen", "page", "group", "alias"])
async def test_a_single_call_is_one_record_with_its_type(client: Client, kind: str) -> None:
    body = b' {"anonymousId": "a\\u00e9", "event": "e"} '
    assert (await client.post(f"/v1/{kind}", gzip.compress(body))).status == 200
    [(partition, record)] = client.outlet.taken
    assert (record.key, record.value) == ("aé".encode(), body)
    assert partition == (murmur2("aé".encode()) & 0x7FFFFFFF) % SHARDS
    told = dict(record.headers)
    assert (told["type"], told["sent_at"], told["mode"]) == (kind.encode(), b"", b"live")
    assert told["message_id"].startswith(b"g-")


async def test_import_says_so(client: Client) -> None:
    assert (await client.post("/v1/import", TEN)).status == 200
    assert {dict(record.headers)["mode"] for _, record in client.outlet.taken} == {b"import"}


async def test_events_without_a_usable_id_are_kept_under_their_source(client: Client) -> None:
    body = b'{"batch":[{"userId":7,"type":"track"},3,' + ONE + b"]}"
    assert (await client.post("/v1/batch", body)).status == 200
    kept = sorted((record.key, record.value) for _, record in client.outlet.taken)
    assert kept == sorted([(b"app", b'{"userId":7,"type":"track"}'), (b"app", b"3"), (b"u-1", ONE)])


async def test_a_broker_that_refuses_is_503(client: Client) -> None:
    client.outlet.mode = "fail"
    answer = await client.post("/v1/batch", TEN)
    assert (answer.status, answer.code) == (503, "broker_unavailable")
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["access-control-expose-headers"] == "retry-after"
    client.outlet.mode = "ok"
    assert (await client.post("/v1/batch", TEN)).status == 200


async def test_a_broker_that_hangs_is_503_at_the_deadline(client: Client) -> None:
    client.outlet.mode = "hang"
    answer = await client.post("/v1/track", ONE)
    assert (answer.status, answer.code) == (503, "broker_slow")
    assert answer.headers["retry-after"] == "1"


async def test_a_broker_known_to_be_away_is_503_at_once(client: Client) -> None:
    client.outlet.away = "the broker does not answer"
    assert (await client.post("/v1/track", ONE)).status == 503
    assert client.outlet.sends == 0


async def test_overload_is_429_and_passes(client: Client) -> None:
    """The broker hangs, requests pile up to the bound; the next is sent away, and taken once there is room."""
    client.outlet.mode = "hang"
    large = json.dumps({"batch": [{**EVENT, "x": "y" * 20_000}] * 15}).encode()
    waiting = [asyncio.create_task(client.post("/v1/batch", large)) for _ in range(10)]
    answers = await asyncio.gather(*waiting)
    assert {answer.status for answer in answers} == {429, 503}
    refused = next(answer for answer in answers if answer.status == 429)
    assert (refused.code, refused.headers["retry-after"]) == ("overloaded", "1")
    client.outlet.mode = "ok"
    client.outlet.released.set()
    async with asyncio.timeout(5):
        while client.collector._budget.used:
            await asyncio.sleep(0.01)
    assert (await client.post("/v1/batch", large)).status == 200


async def test_a_gateway_that_stops_answers_what_it_took_and_takes_no_more(client: Client) -> None:
    client.outlet.mode = "hang"
    taken = asyncio.create_task(client.post("/v1/batch", TEN))
    await asyncio.sleep(0.05)
    stopping = asyncio.create_task(client.collector.drain())
    await asyncio.sleep(0.05)
    late = await client.post("/v1/batch", TEN)
    assert (late.status, late.code) == (503, "stopping")
    client.outlet.mode = "ok"
    client.outlet.released.set()
    await stopping
    assert (await taken).status == 200
    assert len(client.outlet.taken) == 10


async def test_a_client_that_never_finishes_is_408(client: Client) -> None:
    scope_body = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not scope_body.is_set():
            scope_body.set()
            return {"type": "http.request", "body": b'{"batch":', "more_body": True}
        await asyncio.sleep(60)
        raise AssertionError

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(name.encode(), value.encode()) for name, value in KEY.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/batch", "headers": headers}
    await client.app(scope, receive, send)
    assert Answer(sent).status == 408
    assert client.collector._budget.used == 0


async def test_without_known_keys_nobody_is_told_theirs_is_wrong(client: Client) -> None:
    """401 makes SDKs drop events; 503 makes them wait."""
    client.keys.known = False
    assert (await client.post("/v1/track", ONE)).status == 503
    assert (await client.call("GET", "/v1/projects/demo/settings")).status == 503


async def test_a_browser_may_send_what_its_sdk_sends(client: Client) -> None:
    """analytics-next names the number of its retries in a header of its own: refused at the preflight, none would arrive."""
    plain = await client.call("OPTIONS", "/v1/batch")
    assert plain.status == 204
    assert "authorization" in plain.headers["access-control-allow-headers"]
    asked = {"origin": "https://shop.example", "access-control-request-headers": "content-type,x-retry-count,x-new"}
    told = (await client.call("OPTIONS", "/v1/b", headers=asked)).headers
    assert told["access-control-allow-headers"] == "content-type,x-retry-count,x-new"
    assert told["access-control-allow-origin"] == "https://shop.example"
    assert told["access-control-allow-credentials"] == "true"
    absurd = {**asked, "access-control-request-headers": "x" * 5000}
    assert len((await client.call("OPTIONS", "/v1/b", headers=absurd)).headers["access-control-allow-headers"]) < 100


async def test_a_page_may_read_every_answer(client: Client) -> None:
    """Also one to credentials, which `sendBeacon` always sends; and when to try again."""
    for body, status in ((TEN, 200), (b"{", 400)):
        answer = await client.post("/v1/batch", body, origin="https://shop.example")
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers["access-control-expose-headers"] == "retry-after"
        assert answer.headers["vary"] == "origin"


STRICT = [
    EVENT,
    {**EVENT, "userId": None},
    {**EVENT, "type": "purchase"},
    {**EVENT, "event": ""},
    {**EVENT, "timestamp": "yesterday"},
    {**EVENT, "properties": []},
    {**EVENT, "context": {"device": {"token": "t", "type": "fridge"}}},
    {**EVENT, "pad": "x" * 33_000},
    {**EVENT, "timestamp": "1999-01-01T00:00:00Z"},
]


async def test_strict_names_each_event_that_will_be_rejected_and_takes_all(client: Client) -> None:
    """The answer foretells the reasons of the dead letters; what depends on the rules, as the last one's age, it leaves out."""
    body = json.dumps({"batch": STRICT}).encode()
    plain = await client.post("/v1/batch", body)
    strict = await client.post("/v1/batch?strict=1", body)
    assert (plain.status, plain.body, strict.status) == (200, b'{"success": true}', 200)
    told = json.loads(strict.body)
    assert told["success"] is True
    assert [(r["index"], r["reason"]) for r in told["rejected"]] == [
        (1, "missing_id"),
        (2, "unknown_type"),
        (3, "missing_event"),
        (4, "bad_timestamp"),
        (5, "invalid_field:properties"),
        (6, "invalid_property:context.device.type"),
        (7, "too_large"),
    ]
    assert {r["message_id"] for r in told["rejected"]} == {"m-1"}
    assert len(client.outlet.taken) == 2 * len(STRICT)


async def test_strict_about_one_event(client: Client) -> None:
    good = await client.post("/v1/track?strict=1", ONE)
    assert json.loads(good.body) == {"success": True, "rejected": []}
    late = ONE[:-1] + b',"timestamp":"soon"}'
    told = json.loads((await client.post("/v1/track?strict=1", late)).body)
    assert [(r["index"], r["reason"]) for r in told["rejected"]] == [(0, "bad_timestamp")]


async def test_a_key_over_its_rate_is_429_and_leaves_the_others_alone(client: Client) -> None:
    client.keys.replace({key_hash("demo"): KeyFacts("app", 4), key_hash("free"): KeyFacts("other")})
    assert (await client.post("/v1/batch", TEN)).status == 200
    refused = await client.post("/v1/batch", TEN)
    assert (refused.status, refused.code) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 3
    assert client.collector._budget.used == 0 and len(client.outlet.taken) == 10
    assert (await client.post("/v1/batch", TEN, authorization="Bearer free")).status == 200
    assert client.keys.used() == {key_hash("demo"): (10, 1), key_hash("free"): (10, 0)}


async def test_methods_and_unknown_paths(client: Client) -> None:
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        got = await client.call(method, "/v1/track")
        assert (got.status, got.code, got.headers["allow"]) == (405, "method_not_allowed", "POST, OPTIONS")
    assert (await client.call("POST", "/v1/nothing")).status == 404


async def test_the_settings_call_of_mobile_sdks(client: Client) -> None:
    answer = await client.call("GET", "/v1/projects/demo/settings")
    assert answer.status == 200
    integration = json.loads(answer.body)["integrations"]["Segment.io"]
    assert integration == {"apiKey": "demo", "apiHost": "events.example/v1"}
    assert json.loads(answer.body)["metrics"] == {"sampleRate": 0}, "SDKs tell Segment about themselves otherwise"
    assert (await client.call("GET", "/v1/projects/other/settings")).status == 404


async def test_every_documented_path_answers_and_every_call_is_documented(client: Client) -> None:
    document = json.loads((await client.call("GET", "/openapi.json")).body)
    assert set(CALLS) <= set(document["paths"])
    for path, operations in document["paths"].items():
        for method in operations:
            answer = await client.call(method.upper(), path.replace("{key}", "demo"))
            assert answer.status not in (404, 405), f"{method} {path}"


async def test_health_tells_what_is_missing(client: Client) -> None:
    client.health.not_ready = "the broker does not answer"
    assert (await client.call("GET", "/readyz")).status == 503
    client.health.ready()
    assert (await client.call("GET", "/readyz")).status == 200
    assert (await client.call("GET", "/healthz")).status == 200
    assert b"perennial_gateway_requests_total" in (await client.call("GET", "/metrics")).body
