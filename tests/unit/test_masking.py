"""What people are shown of a raw event, and what a log line says: never whom it is about."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from services.ingest.domain.masking import masked, shown, shown_headers
from shared.process.logs import JsonFormatter

MAIL, PHONE = "ann.lee@example.com", "+1 415 555 2671"


def test_raw_events_are_shown_without_what_may_be_a_persons() -> None:
    event = {
        "type": "track",
        "userId": "u-123",
        "properties": {"email": "a@b.c", "n": 5, "ok": True, "list": ["secret"]},
    }
    found = masked(event)
    assert found["type"] == "track"
    assert found["properties"]["ok"] is True
    text = json.dumps(found)
    assert not any(secret in text for secret in ("u-123", "a@b.c", "secret"))


def test_the_names_of_what_is_shown_hide_nothing_in_properties_and_traits() -> None:
    """An app may well have a property `event` or a trait `type`, and put into it what it likes."""
    named = {"event": "dinner with Ann", "type": "widow", "version": 7}
    context = {"locale": "en-US", "app": {"version": "1.2"}, "device": {"type": "ios", "token": "t-1"}, "traits": named}
    found = masked({"event": "City Added", "properties": named, "traits": {"deep": [named]}, "context": context})
    assert found["event"] == "City Added"
    assert found["context"]["app"] == {"version": "1.2"} and found["context"]["device"]["type"] == "ios"
    assert not any(secret in json.dumps(found) for secret in ("Ann", "widow", "7", "t-1"))


@pytest.mark.parametrize("secret", [MAIL, PHONE])
@pytest.mark.parametrize(
    "event",
    [
        lambda secret: {"type": "track", "event": f"mail to {secret}"},
        lambda secret: {"type": secret, "messageId": secret, "timestamp": secret},
        lambda secret: {
            "type": "track",
            secret: "as a name",
            "context": {"locale": secret, secret: {"version": secret}},
        },
        lambda secret: [secret, {"event": [secret]}],
        lambda secret: secret,
    ],
)
def test_whatever_names_a_person_is_hidden_wherever_it_stands(event: Any, secret: str) -> None:
    assert secret not in json.dumps(shown(json.dumps(event(secret)).encode()))


def test_what_is_no_json_is_not_shown_at_all() -> None:
    assert shown(f'{{"userId": "{MAIL}"'.encode()) == "not JSON: 32 bytes"
    assert shown(b"[" * 100_000) == "not JSON: 100000 bytes"


def test_headers_are_shown_where_the_gateway_writes_them() -> None:
    headers = [("received_at", b"1767225600000"), ("source", b"app"), ("message_id", MAIL.encode()), ("who", b"Ann")]
    assert shown_headers(headers) == {
        "received_at": "1767225600000",
        "source": "app",
        "message_id": "a… (str, 19)",
        "who": "… (str, 3)",
    }


@pytest.mark.parametrize("secret", [MAIL, PHONE])
def test_a_log_line_names_nobody(secret: str) -> None:
    """Database and libraries quote the values they do not take, and an unknown failure is logged with all it says."""
    try:
        raise ValueError(f"invalid input for query argument $1: '{secret}' (a text)")
    except ValueError as error:
        record = logging.LogRecord("l", logging.ERROR, "f", 1, "of %s: %s", (secret, error), (ValueError, error, None))
        record.fields = {"user": secret, "several": [secret], "by": {secret: 1}, "other": error, "offset": 1767225600}
    line = JsonFormatter("ingest").format(record)
    assert secret not in line
    told = json.loads(line)
    assert told["message"].startswith("of …: invalid input for query argument $1: ") and "(a text)" in told["message"]
    assert told["several"] == ["…"] and told["offset"] == 1767225600 and "ValueError" in told["exception"]
