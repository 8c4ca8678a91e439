"""The verdict on a raw record: taken in, refused and why, or lying in the wrong place — whatever its bytes."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.ingest.domain.intake import Intake, Misplaced, RawRecord, Refused, Requested, Taken, Verdict
from services.ingest.domain.replaying import again
from shared.contracts.events import Accepted, Device, decode_decision, encode
from shared.contracts.identifiers import MAX_ID_CHARS, shard_of
from shared.contracts.rules import Privacy
from shared.gazetteer import load as load_gazetteer
from shared.process.clock import iso
from tests.support.people import CHICAGO, DAY, HOUR, NEW_YORK, T0, weather

SHARDS = 4
OPENED: dict[str, Any] = {"type": "track", "event": "Application Opened", "userId": "u-1", "messageId": "m-1"}


@cache
def _intake(*, pii_less: bool = True) -> Intake:
    rules = msgspec.structs.replace(weather(), privacy=Privacy(pii_less=pii_less))
    return Intake(rules, load_gazetteer(), SHARDS)


def _raw(body: Any, *, key: str | bytes | None = "u-1", partition: int | None = None, **headers: str) -> RawRecord:
    value = body if isinstance(body, bytes) else json.dumps(body).encode()
    key = key.encode() if isinstance(key, str) else key
    if partition is None:
        partition = shard_of((key or b"").decode("utf-8", "replace"), SHARDS)
    told = {name: text.encode() for name, text in {"source": "app", "mode": "live", **headers}.items()}
    return RawRecord(partition, 7, key, value, told, T0)


def _judge(body: Any, **how: Any) -> Verdict:
    return _intake().judge(_raw(body, **how))


def _taken(body: Any, **how: Any) -> Taken:
    verdict = _judge(body, **how)
    assert isinstance(verdict, Taken), verdict
    return verdict


def _reason(body: Any, **how: Any) -> str:
    verdict = _judge(body, **how)
    assert isinstance(verdict, Refused), verdict
    return verdict.reason


def test_a_plain_event_is_taken_as_it_is() -> None:
    assert _taken({**OPENED, "properties": {"version": "2.1", "from_background": True, "secret": 1}}) == Taken(
        "u-1", "m-1", "Application Opened", T0, "live", "app", None, {"version": "2.1", "from_background": True}, None
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "malformed_json"),
        (b"{", "malformed_json"),
        (b"\xff\xfe", "malformed_json"),
        (b'{"userId": "\xed\xa0\x80"}', "malformed_json"),
        (b'{"userId": "\\ud800", "event": "x"}', "malformed_json"),
        (b'{"userId": NaN}', "malformed_json"),
        (b'{"properties": {"a": ' + b"[" * 20_000, "malformed_json"),
        (b" " * 32_769, "too_large"),
        (b"[]", "invalid_field:$"),
        (b'"text"', "invalid_field:$"),
        ({**OPENED, "userId": 5}, "invalid_field:userId"),
        ({**OPENED, "properties": []}, "invalid_field:properties"),
        ({**OPENED, "timestamp": 5}, "invalid_field:timestamp"),
        ({**OPENED, "userId": None}, "missing_id"),
        ({**OPENED, "userId": ""}, "missing_id"),
        ({**OPENED, "userId": "a\0b"}, "nul_character:id"),
        ({**OPENED, "messageId": "a\0b"}, "nul_character:id"),
        ({**OPENED, "userId": "x" * (MAX_ID_CHARS + 1)}, "id_too_long"),
        ({**OPENED, "messageId": "x" * (MAX_ID_CHARS + 1)}, "id_too_long"),
        ({**OPENED, "type": "teleport"}, "unknown_type"),
        ({**OPENED, "type": None}, "unknown_type"),
        ({**OPENED, "event": None}, "missing_event"),
        ({**OPENED, "event": ""}, "missing_event"),
        ({**OPENED, "event": "a\0"}, "missing_event"),
        ({**OPENED, "event": "x" * 257}, "missing_event"),
        ({**OPENED, "properties": {"version": "a\0"}}, "nul_character:version"),
        ({**OPENED, "properties": {"version": 2**64}}, "invalid_property:version"),
        ({**OPENED, "properties": {"version": [1]}}, "invalid_property:version"),
        ({**OPENED, "context": {"locale": "e\0n"}}, "nul_character:context"),
        ({**OPENED, "context": {"device": {"type": "fridge", "token": "t"}}}, "invalid_property:context.device.type"),
        ({**OPENED, "context": {"device": {"type": "ios", "token": "t\0"}}}, "invalid_property:context.device.token"),
        (
            {**OPENED, "context": {"device": {"type": "ios", "token": "t" * 4097}}},
            "invalid_property:context.device.token",
        ),
        (
            {**OPENED, "context": {"device": {"id": "a\0", "type": "ios", "token": "t"}}},
            "nul_character:context.device.id",
        ),
        ({**OPENED, "event": "City Added"}, "missing_city"),
        ({**OPENED, "event": "City Added", "properties": {"city": " "}}, "missing_city"),
        ({**OPENED, "event": "City Added", "properties": {"city": "Nowhereville-on-Sea"}}, "unknown_city"),
        ({**OPENED, "event": "City Added", "properties": {"lat": 91, "lon": 0}}, "unknown_city"),
        ({**OPENED, "event": "City Added", "properties": {"lat": 1e308, "lon": -1e308}}, "unknown_city"),
        ({**OPENED, "event": "City Added", "properties": {"lat": True, "lon": True}}, "unknown_city"),
        ({**OPENED, "properties": {"version": "ann@example.com"}}, "pii:version"),
        ({**OPENED, "properties": {"version": "call +1 (555) 123-4567"}}, "pii:version"),
        ({**OPENED, "event": "Mail to ann@example.com"}, "pii:event"),
        ({**OPENED, "context": {"campaign": {"source": "ann@example.com"}}}, "pii:context"),
        ({**OPENED, "context": {"app": {"version": "+1 415 555 2671"}}}, "pii:context"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_data_is_a_reason(body: Any, reason: str) -> None:
    assert _reason(body) == reason


def test_a_record_without_a_value_is_refused() -> None:
    verdict = _intake().judge(RawRecord(0, 3, b"u", None, {}, T0))
    assert verdict == Refused("u", "o-0-3", "empty", "")


@pytest.mark.parametrize("value", ["1" * 1000, "1e400", "-1e400"])
def test_numbers_beyond_reason_do_not_pass(value: str) -> None:
    body = (
        b'{"type":"track","event":"Application Opened","userId":"u-1","properties":{"version":' + value.encode() + b"}}"
    )
    assert isinstance(_judge(body), Refused)


@pytest.mark.parametrize(
    "text", ["2.1.0", "20260102", "2026-01-02 10:00", "192.168.0.1", "a@b", "8 of 10", "1234567890123"]
)
def test_versions_dates_and_numbers_are_no_personal_data(text: str) -> None:
    assert _taken({**OPENED, "properties": {"version": text}}).properties["version"] == text


def test_a_user_named_by_an_address_is_personal_data() -> None:
    mail = "ann@example.com"
    assert _reason({**OPENED, "userId": mail}, key=mail) == "pii:user_id"
    verdict = _intake(pii_less=False).judge(_raw({**OPENED, "userId": mail}, key=mail))
    assert isinstance(verdict, Taken)


def test_long_texts_are_cut_and_flags_kept() -> None:
    assert len(_taken({**OPENED, "properties": {"version": "v" * 5000}}).properties["version"]) == 1024
    categories = {"location": False, "push": True, "note": "text", "n": 3}
    told = _taken({**OPENED, "event": "Consent Preference Updated", "properties": {"categories": categories}})
    assert told.properties == {"categories": {"location": False, "push": True}}


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("screen", "$screen"),
        ("page", "$page"),
        ("identify", "$identify"),
        ("group", "$group"),
        ("track", "Application Opened"),
    ],
)
def test_calls_are_named(call: str, name: str) -> None:
    assert _taken({**OPENED, "type": call}).name == name
    without = {k: v for k, v in OPENED.items() if k != "type"}
    assert _taken(without, type=call).name == name


def test_the_anonymous_id_stands_in_for_a_missing_user_id() -> None:
    assert _taken({**OPENED, "userId": None, "anonymousId": "u-1"}).user_id == "u-1"
    assert _taken({**OPENED, "anonymousId": "somebody"}).user_id == "u-1"


@pytest.mark.parametrize(
    ("call", "ids", "identifies"),
    [
        ("identify", {"userId": "u-1", "anonymousId": "a"}, "a"),
        ("identify", {"userId": "u-1"}, ""),
        ("identify", {"userId": "u-1", "previousId": "b"}, ""),
        ("identify", {"anonymousId": "u-1"}, None),
        ("alias", {"userId": "u-1", "previousId": "b", "anonymousId": "a"}, "b"),
        ("alias", {"userId": "u-1", "anonymousId": "a"}, "a"),
        ("alias", {"userId": "u-1"}, ""),
        ("group", {"userId": "u-1", "anonymousId": "a"}, None),
        ("track", {"userId": "u-1", "anonymousId": "a"}, None),
    ],
)
def test_who_a_user_is_say_two_calls(call: str, ids: dict[str, str], identifies: str | None) -> None:
    """SDKs send both ids with every call of somebody who signed in: only these two mean it."""
    assert _taken({**OPENED, "type": call, "userId": None, **ids}).identifies == identifies


@pytest.mark.parametrize(("other", "reason"), [("a\0b", "nul_character:id"), ("a" * 257, "id_too_long"),
                                              ("kim@example.org", "pii:user_id")])  # fmt: skip
def test_another_id_is_held_to_what_ids_are_held_to(other: str, reason: str) -> None:
    """It would come in by the back door otherwise."""
    assert _reason({**OPENED, "type": "alias", "previousId": other}) == reason


def test_the_message_id_of_the_gateway_goes_before_the_events() -> None:
    """What it answered 200 for is what is counted once; without one, a useless id is not a reason to lose the event."""
    assert _taken(OPENED, message_id="h").message_id == "h"
    assert _taken(OPENED, message_id="a\0b").message_id == "m-1"
    assert _taken(OPENED).message_id == "m-1"
    assert _taken({**OPENED, "messageId": None}).message_id == f"o-{shard_of('u-1', SHARDS)}-7"


# -- time -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timestamp", "sent_at", "mode", "expected"),
    [
        (None, None, "live", T0),
        (T0 - HOUR, None, "live", T0 - HOUR),
        (T0 - HOUR, T0 - HOUR, "live", T0),  # an hour slow, sent at once
        (T0 + 5 * DAY, T0 + 5 * DAY + 60_000, "live", T0 - 60_000),  # days fast, waited a minute
        (T0 - 10 * DAY, T0 - 8 * DAY, "live", T0 - 2 * DAY),
        (T0 + HOUR, None, "live", T0),
        (T0 + DAY, None, "live", T0),
        (T0 + DAY + 1, None, "live", "future"),
        (T0 - 30 * DAY, None, "live", T0 - 30 * DAY),
        (T0 - 30 * DAY - 1, None, "live", "too_old"),
        (T0 - 4000 * DAY, None, "import", T0 - 4000 * DAY),
        (T0 - 4000 * DAY, T0 - DAY, "import", T0 - 4000 * DAY),
        (T0 + 2 * DAY, None, "import", "future"),
        (T0 - HOUR, T0 - HOUR, "replay", T0),  # received once, judged by that
        (T0 - 30 * DAY, None, "replay", T0 - 30 * DAY),
        (T0 - 40 * DAY, None, "replay", "too_old"),
    ],
)
def test_an_events_time(timestamp: int | None, sent_at: int | None, mode: str, expected: int | str) -> None:
    """Source: Segment's rule for `timestamp`, `sentAt` and `receivedAt`. An import's clock is nobody's phone."""
    body = dict(OPENED)
    if timestamp is not None:
        body["timestamp"] = iso(timestamp)
    if sent_at is not None:
        body["sentAt"] = iso(sent_at)
    verdict = _judge(body, mode=mode)
    assert (verdict.reason if isinstance(verdict, Refused) else verdict.occurred_at) == expected  # type: ignore[union-attr]


def test_the_envelopes_sent_at_comes_as_a_header_in_milliseconds_or_text() -> None:
    body = {**OPENED, "timestamp": iso(T0 - 2 * HOUR)}
    assert _taken(body, sent_at=str(T0 - HOUR)).occurred_at == T0 - HOUR
    assert _taken(body, sent_at=iso(T0 - HOUR)).occurred_at == T0 - HOUR


@pytest.mark.parametrize(
    "text", ["yesterday", "0001-01-01T00:00:00", "9999-12-31T23:59:59.999999Z", "2026-13-01", "0000-00-00", "1" * 400]
)
def test_far_and_senseless_dates_end_in_a_reason(text: str) -> None:
    for mode in ("live", "import"):
        assert _reason({**OPENED, "timestamp": text}, mode=mode) in ("bad_timestamp", "future", "too_old")
        verdict = _judge({**OPENED, "timestamp": iso(T0), "sentAt": text}, mode=mode)
        assert isinstance(verdict, Taken | Refused)


def test_an_event_before_1970_is_too_old_even_to_import() -> None:
    assert _reason({**OPENED, "timestamp": "1969-12-31T23:59:59Z"}, mode="import") == "too_old"


# -- places ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "city"),
    [
        ({"city": "New York", "state": "NY"}, NEW_YORK),
        ({"city": "Chicago", "state": "Illinois", "country": "US"}, CHICAGO),
        ({"lat": 40.71, "lon": -74.0}, NEW_YORK),
        ({"latitude": 41.88, "longitude": -87.63}, CHICAGO),
    ],
)
def test_cities_become_ids_and_points_are_dropped(properties: dict[str, Any], city: int) -> None:
    taken = _taken({**OPENED, "event": "City Searched", "properties": properties})
    assert taken.city_id == city
    assert not {"lat", "lon", "latitude", "longitude"} & set(taken.properties)


# -- devices --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "device"),
    [
        ({"id": "d", "type": "iOS", "token": "t"}, Device("d", "ios", "t")),
        ({"type": "android", "token": "t"}, Device("t", "android", "t")),
        ({"id": 5, "type": "web", "token": "t"}, Device("t", "web", "t")),
        ({"id": "d" * 300, "type": "web", "token": "t"}, Device("d" * MAX_ID_CHARS, "web", "t")),
        ({"id": "d", "type": "ios"}, None),
        ({"id": "d", "type": "ios", "token": ""}, None),
        ({"id": "d", "type": "ios", "token": 5}, None),
        ("phone", None),
    ],
)
def test_a_device_needs_a_token_and_a_known_type(told: Any, device: Device | None) -> None:
    context = _taken({**OPENED, "context": {"device": told}}).context
    assert (context.device if context is not None else None) == device


def test_a_context_that_says_nothing_is_none() -> None:
    said: list[Any] = [None, {}, {"app": 5, "campaign": [], "locale": 3}, {"os": {"name": "x"}}]
    for context in said:
        assert _taken({**OPENED, "context": context}).context is None


# -- places in the log ----------------------------------------------------------------------------------


def test_a_record_in_another_partition_has_to_move() -> None:
    right = shard_of("u-1", SHARDS)
    assert _judge(OPENED, partition=(right + 1) % SHARDS) == Misplaced("u-1", "m-1", right)


def test_a_record_under_another_key_has_to_move() -> None:
    """The right partition by chance is not enough: the topics' key is what readers order by."""
    right = shard_of("u-1", SHARDS)
    for key in ("somebody", None):
        assert _judge(OPENED, key=key, partition=right) == Misplaced("u-1", "m-1", right)


# -- requests about a user ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["erase", "readmit"])
def test_a_request_is_known_by_its_mode(mode: str) -> None:
    """An id that names a person is no reason to keep what was kept under it; what lies elsewhere has to move first."""
    for user in ("u-1", "ann@example.com"):
        body = {"type": mode, "userId": user, "messageId": "er-1"}
        assert _judge(body, key=user, mode=mode, message_id="er-1") == Requested(user, "er-1", mode == "readmit")
    assert isinstance(_judge(body, key="else", mode=mode), Misplaced)
    assert _reason({"type": mode}, mode=mode) == "missing_id"


@pytest.mark.parametrize("mode", ["live", "import", "replay", ""])
def test_an_event_that_calls_itself_a_request_is_none(mode: str) -> None:
    """Whoever holds a write key may post any body and any type; the mode is the gateway's."""
    body = {"type": "erase", "mode": "erase", "userId": "u-1", "messageId": "m-1"}
    assert _reason(body, mode=mode, type="erase") == "unknown_type"


def test_a_request_that_is_replayed_stays_one() -> None:
    for mode, kept in (("erase", b"erase"), ("readmit", b"readmit"), ("import", b"import"), ("live", b"replay")):
        raw = _raw(OPENED, mode=mode)
        assert dict(again(raw, _intake().judge(raw)).headers)["mode"] == kept


def test_one_moved_is_taken_where_it_arrives() -> None:
    """Otherwise it would go round for ever."""
    for user in (f"user-{n}" for n in range(40)):
        verdict = _judge({**OPENED, "userId": user}, key="else", partition=0)
        assert isinstance(verdict, Misplaced)
        _taken({**OPENED, "userId": verdict.user_id}, key=verdict.user_id, partition=verdict.shard)


# -- whatever comes -------------------------------------------------------------------------------------

_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["a\0", "x" * 300])
)
_FLAT = _SCALARS | st.lists(_SCALARS, max_size=3) | st.dictionaries(st.text(max_size=8), _SCALARS, max_size=3)
_JSON = _FLAT | st.lists(_FLAT, max_size=2) | st.dictionaries(st.text(max_size=8), _FLAT, max_size=2)
_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        name: _JSON | st.sampled_from(["track", "Application Opened", "City Added", "2026-01-01", "u-1"])
        for name in ("type", "event", "userId", "anonymousId", "messageId", "timestamp", "sentAt")
    }
    | {
        name: _JSON | st.dictionaries(st.sampled_from(["city", "lat", "lon", "version", "categories", "device"]), _JSON)
        for name in ("properties", "traits", "context")
    },
)
_BODIES = st.binary(max_size=60) | _FIELDS.map(lambda fields: json.dumps(fields).encode())
_TEXTS = st.binary(max_size=40) | st.just(b"a\x00b") | st.just(b"k" * 3000)


@settings(max_examples=300, deadline=None, database=None)
@given(
    _BODIES,
    st.none() | _TEXTS,
    st.dictionaries(st.sampled_from(["source", "message_id", "type", "mode", "sent_at"]), _TEXTS),
)
@example(b"{", b"a\x00b", {})
@example(b"{", b"k" * 3000, {"message_id": b"m\x00"})
@example(b'{"userId": "u", "messageId": "\\u0000"}', b"u", {"message_id": b"m\x00"})
def test_whatever_lies_in_raw_gets_a_verdict_the_database_can_keep(
    value: bytes, key: bytes | None, headers: dict[str, bytes]
) -> None:
    """Any back end may produce to raw. An exception would stop the partition here; a NUL or an endless id would stop
    it one service further, where ids become rows and index entries."""
    for partition in range(2):
        verdict = _intake().judge(RawRecord(partition, 1, key, value, headers, T0))
        for name in (verdict.user_id, verdict.message_id):
            assert "\0" not in name
            assert len(name) <= MAX_ID_CHARS
            name.encode()
        if isinstance(verdict, Taken):
            decided: Any = Accepted(1, 0, b"", 1, *verdict[:4], T0, *verdict[4:9])  # type: ignore[arg-type]
            again: Any = decode_decision(encode(decided))
            assert again.user_id == verdict.user_id
            assert 0 <= verdict.occurred_at <= T0
