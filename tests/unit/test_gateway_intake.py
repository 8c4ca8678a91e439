"""Which posted bodies are taken, as what, and which are refused."""

from __future__ import annotations

import json

import pytest

from services.ingest.domain import intake_http as ih
from services.ingest.domain.intake_http import Event, Refused

EVENT = {"type": "track", "event": "Opened", "userId": "u-1", "messageId": "m-1"}


def single(body: bytes, kind: str = "track") -> Event | Refused:
    opened = ih.open_single(body)
    return opened if isinstance(opened, Refused) else ih.single(opened, kind, body)


def batch(body: bytes) -> list[Event] | Refused:
    opened = ih.open_batch(body)
    return opened if isinstance(opened, Refused) else ih.batch(opened)


def as_json(**fields: object) -> bytes:
    return json.dumps(fields).encode()


REFUSED_SINGLES: list[tuple[str, bytes, int, str]] = [
    ("empty", b"", 400, "malformed_json"),
    ("white space", b"  \n", 400, "malformed_json"),
    ("cut short", b'{"userId":"u","event":"e"', 400, "malformed_json"),
    ("trailing", b'{"userId":"u","event":"e"} {}', 400, "malformed_json"),
    ("byte order mark", b'\xef\xbb\xbf{"userId":"u","event":"e"}', 400, "malformed_json"),
    ("UTF-16", '{"userId":"u","event":"e"}'.encode("utf-16"), 400, "malformed_json"),
    ("NaN", b'{"userId":"u","event":"e","properties":{"x":NaN}}', 400, "malformed_json"),
    ("single quotes", b"{'userId':'u','event':'e'}", 400, "malformed_json"),
    ("a form", b"userId=u&event=e", 400, "malformed_json"),
    ("control character", b'{"userId":"u\n","event":"e"}', 400, "malformed_json"),
    ("raw NUL", b'{"userId":"u\x00","event":"e"}', 400, "malformed_json"),
    ("broken UTF-8 in an id", b'{"userId":"\xff","event":"e"}', 400, "malformed_json"),
    ("broken UTF-8 elsewhere", b'{"userId":"u","event":"e","properties":{"x":"\xc3"}}', 400, "malformed_json"),
    ("encoded surrogate", b'{"userId":"\xed\xa0\x80","event":"e"}', 400, "malformed_json"),
    ("lone surrogate in an id", rb'{"userId":"a\ud800","event":"e"}', 400, "malformed_json"),
    ("lone surrogate elsewhere", rb'{"userId":"u","event":"e","properties":{"x":"\udc00 "}}', 400, "malformed_json"),
    ("nested too deeply", b'{"userId":"u","event":"e","properties":' + b'{"a":' * 5_000, 400, "malformed_json"),
    ("a list", b'[{"userId":"u","event":"e"}]', 400, "invalid_body"),
    ("a string", b'"userId"', 400, "invalid_body"),
    ("null", b"null", 400, "invalid_body"),
    ("a number", b"1", 400, "invalid_body"),
    ("no ids", as_json(event="e"), 400, "missing_id"),
    ("null ids", as_json(event="e", userId=None, anonymousId=None), 400, "missing_id"),
    ("empty ids", as_json(event="e", userId="", anonymousId=""), 400, "missing_id"),
    ("a number as id", as_json(event="e", userId=17), 400, "invalid_id"),
    ("true as id", as_json(event="e", userId=True), 400, "invalid_id"),
    ("a list as id", as_json(event="e", userId=["u"]), 400, "invalid_id"),
    ("an object as id", as_json(event="e", anonymousId={"id": "u"}), 400, "invalid_id"),
    ("a bad second id", as_json(event="e", userId="u", anonymousId=1), 400, "invalid_id"),
    ("an id of 257 characters", as_json(event="e", userId="u" * 257), 400, "invalid_id"),
    ("an escaped NUL in an id", rb'{"userId":"a\u0000","event":"e"}', 400, "invalid_id"),
    ("track without event", as_json(userId="u"), 400, "missing_event"),
    ("null event", as_json(userId="u", event=None), 400, "missing_event"),
    ("empty event", as_json(userId="u", event=""), 400, "missing_event"),
    ("a number as event", as_json(userId="u", event=1), 400, "missing_event"),
    ("an endless event", as_json(userId="u", event="e" * 300), 400, "missing_event"),
    ("another type", as_json(userId="u", event="e", type="screen"), 400, "wrong_type"),
    ("a number as type", as_json(userId="u", event="e", type=1), 400, "wrong_type"),
    ("a number as timestamp", as_json(userId="u", event="e", timestamp=1), 400, "invalid_body"),
    ("a number as messageId", as_json(userId="u", event="e", messageId=1), 400, "invalid_body"),
    ("a number as sentAt", as_json(userId="u", event="e", sentAt=1), 400, "invalid_body"),
    ("a list as properties", as_json(userId="u", event="e", properties=[]), 400, "invalid_body"),
    ("a string as context", as_json(userId="u", event="e", context="x"), 400, "invalid_body"),
    ("one byte too many", as_json(userId="u", event="e", x="y" * 32 * 1024), 413, "event_too_large"),
]


@pytest.mark.parametrize(
    ("body", "status", "code"), [c[1:] for c in REFUSED_SINGLES], ids=[c[0] for c in REFUSED_SINGLES]
)
def test_a_single_event_nobody_could_use_is_refused(body: bytes, status: int, code: str) -> None:
    answer = single(body)
    assert isinstance(answer, Refused)
    assert (answer.status, answer.code) == (status, code)
    assert answer.message


TAKEN_SINGLES: list[tuple[str, bytes, str]] = [
    ("plain", as_json(**EVENT), "u-1"),
    ("anonymous", as_json(event="e", anonymousId="a"), "a"),
    ("null beside a good id", as_json(event="e", userId=None, anonymousId="a"), "a"),
    ("both ids", as_json(event="e", userId="u", anonymousId="a"), "u"),
    ("explicit nulls", as_json(event="e", userId="u", properties=None, context=None, type=None, timestamp=None), "u"),
    ("unknown keys", as_json(event="e", userId="u", _metadata={"x": [1]}, channel=3, integrations={}), "u"),
    ("an id of 256 wide characters", as_json(event="e", userId="é" * 256), "é" * 256),
    ("an emoji as surrogate pair", rb'{"userId":"\ud83d\ude00","event":"e"}', "😀"),
    ("a repeated key, the last of which counts", b'{"userId":"a","userId":"b","event":"e"}', "b"),
    ("a large number", b'{"userId":"u","event":"e","properties":{"x":1e999,"y":123456789012345678901234567890}}', "u"),
    ("white space around", b' \r\n{"userId":"u","event":"e"}\n', "u"),
    ("exactly 32 KB", b'{"userId":"u","event":"e","x":"' + b"y" * (32 * 1024 - 33) + b'"}', "u"),
]


@pytest.mark.parametrize(("body", "user_id"), [c[1:] for c in TAKEN_SINGLES], ids=[c[0] for c in TAKEN_SINGLES])
def test_a_usable_single_event_travels_as_the_bytes_that_came(body: bytes, user_id: str) -> None:
    answer = single(body)
    assert not isinstance(answer, Refused), answer
    assert answer[0] == user_id
    assert answer[4] == body


@pytest.mark.parametrize("kind", ["identify", "screen", "page", "group", "alias"])
def test_only_a_track_call_needs_an_event_name(kind: str) -> None:
    answer = single(as_json(userId="u"), kind)
    assert not isinstance(answer, Refused)
    assert answer[1] == kind


REFUSED_BATCHES: list[tuple[str, bytes, int, str]] = [
    ("empty body", b"", 400, "malformed_json"),
    ("a bare list", b"[]", 400, "invalid_body"),
    ("null", b"null", 400, "invalid_body"),
    ("no batch", b"{}", 400, "missing_batch"),
    ("null batch", b'{"batch":null}', 400, "missing_batch"),
    ("an object as batch", b'{"batch":{}}', 400, "invalid_body"),
    ("a string as batch", b'{"batch":"x"}', 400, "invalid_body"),
    ("cut short", b'{"batch":[{"userId":"u"}', 400, "malformed_json"),
    ("a comma too many", b'{"batch":[{"userId":"u"},]}', 400, "malformed_json"),
    ("nested too deeply", b'{"batch":[' + b"[" * 100_000, 400, "malformed_json"),
    ("cut short with a lone surrogate", rb'{"batch":[{"userId":"\ud800 "}', 400, "malformed_json"),
    ("a flood of nothings", b'{"batch":[' + b"1," * 5_000 + b"1]}", 413, "too_many_events"),
]


@pytest.mark.parametrize(
    ("body", "status", "code"), [c[1:] for c in REFUSED_BATCHES], ids=[c[0] for c in REFUSED_BATCHES]
)
def test_a_body_without_a_readable_list_is_refused(body: bytes, status: int, code: str) -> None:
    answer = batch(body)
    assert isinstance(answer, Refused)
    assert (answer.status, answer.code) == (status, code)


BAD_IN_BATCH: list[tuple[str, bytes, str | None]] = [
    ("a number", b"17", None),
    ("null", b"null", None),
    ("a string", b'"x"', None),
    ("a list", b"[[]]", None),
    ("an empty object", b"{}", None),
    ("a number as id", b'{"userId": 17}', None),
    ("an id too long", as_json(userId="u" * 257), None),
    ("a bad id beside a good one", as_json(userId=17, anonymousId="a"), "a"),
    ("an escaped NUL", rb'{"userId":"a\u0000"}', None),
    ("a lone surrogate in the id", rb'{"userId":"a\ud800b","x":"\\ud800"}', "a\ufffdb"),
    ("a lone surrogate elsewhere", rb'{"userId":"u","x":"\ud83d\ude00 \udc00"}', "u"),
    ("broken UTF-8", b'{"userId":"u","x":"\xf0\x9f"}', "u"),
    ("no type", b'{"userId":"u"}', "u"),
    ("an unknown type", b'{"userId":"u","type":"dance"}', "u"),
    ("a number as type", b'{"userId":"u","type":1}', "u"),
    ("a number as messageId", b'{"userId":"u","messageId":1}', "u"),
    ("an oversize event", as_json(userId="u", x="y" * 40_000), "u"),
]


@pytest.mark.parametrize(("bad", "user_id"), [c[1:] for c in BAD_IN_BATCH], ids=[c[0] for c in BAD_IN_BATCH])
def test_one_bad_event_does_not_cost_the_others(bad: bytes, user_id: str | None) -> None:
    """All three reach the log byte for byte; only that gives ingest something to name a reason for."""
    good = as_json(**EVENT)
    answer = batch(b'{ "context":' + good + b', "batch" : [' + good + b" , " + bad + b"\n, " + good + b"] }")
    assert not isinstance(answer, Refused), answer
    assert [event[4] for event in answer] == [good, bad, good]
    assert [event[0] for event in answer] == ["u-1", user_id, "u-1"]
    assert answer[0][1:4] == answer[2][1:4] == ("track", "m-1", b"")


def test_an_empty_batch_is_no_error() -> None:
    assert batch(b'{"batch":[]}') == []


@pytest.mark.parametrize(
    ("given", "sent_at"),
    [
        ('"2026-01-02T03:04:05.678Z"', b"1767323045678"),
        ('"2026-01-02T03:04:05.678901+01:00"', b"1767319445679"),
        ('"yesterday"', b"yesterday"),
        ('"0001-01-01T00:00:00+14:00"', b"-62135647200000"),
        ("1767323045678", b"1767323045678"),
        ("null", b""),
        ('"' + "x" * 100 + '"', b"x" * 64),
    ],
)
def test_sent_at_is_milliseconds_or_what_came(given: str, sent_at: bytes) -> None:
    answer = batch(b'{"batch":[{"userId":"u"}],"sentAt":' + given.encode() + b"}")
    assert not isinstance(answer, Refused)
    assert answer[0][3] == sent_at


def test_the_envelopes_sent_at_goes_before_the_events_own() -> None:
    """The envelope says when this was sent; an event may still say when its phone last tried."""
    own = b'{"batch":[{"userId":"u","sentAt":"2026-01-02T03:04:05Z"}]'
    alone, both = batch(own + b"}"), batch(own + b',"sentAt":"2026-01-02T03:04:06Z"}')
    assert not isinstance(alone, Refused)
    assert not isinstance(both, Refused)
    assert (alone[0][3], both[0][3]) == (b"1767323045000", b"1767323046000")


def test_message_ids_are_the_clients_or_of_the_content_or_left_open() -> None:
    """A retry must hash alike, so only an event with a timestamp may be named by its bytes: without one two
    equal events may be two."""
    named = single(as_json(userId="u", event="e", messageId="m"))
    dated = as_json(userId="u", event="e", timestamp="2026-01-02T03:04:05Z")
    rudder = single(as_json(userId="u", event="e", originalTimestamp="2026-01-02T03:04:05Z"))
    bare = single(as_json(userId="u", event="e"))
    overlong = single(as_json(userId="u", event="e", messageId="m" * 257))
    first, again = single(dated), single(dated)
    assert not any(isinstance(a, Refused) for a in (named, rudder, bare, overlong, first, again))
    assert named[2] == "m"
    assert first == again and str(first[2]).startswith("c-") and str(rudder[2]).startswith("c-")
    assert bare[2] is None and overlong[2] is None
