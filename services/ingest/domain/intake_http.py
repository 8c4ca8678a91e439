"""What a posted body says: which events it carries, under which ids, or why it is refused.

A single event that no one could use is refused. In a batch nothing is: one bad event must not cost the
others, so it travels with them as it came, and ingest rejects it with a reason.
"""

from __future__ import annotations

import codecs
import re
from typing import Any, NamedTuple

import msgspec

from shared.contracts.identifiers import MAX_ID_CHARS, content_message_id
from shared.process.clock import parse_instant

MAX_BATCH_BYTES = 500 * 1024
MAX_EVENT_BYTES = 32 * 1024
MAX_BATCH_EVENTS = 5_000
"""A batch of empty objects is small on the wire and large in memory."""

_MAX_TEXT = 64
"""How much of a malformed `sentAt` or `type` goes into a header."""


class Refused(NamedTuple):
    """The answer to a body that was not taken: HTTP status, `code` in snake case, what to do about it, and in how many
    seconds, where that is known."""

    status: int
    code: str
    message: str
    retry_seconds: int = 0


Event = tuple[str | None, str, str | None, bytes, bytes]
"""One event as it goes to the log: `(user_id, type, message_id, sent_at, value)`. `user_id` is None where it
names no usable one, `message_id` where it names none and nothing in it would make a retry hash alike.
`sent_at` is milliseconds in decimal, or what came where that is no instant, or empty. A plain tuple, since
there are a hundred thousand a second."""


_ABSENT = msgspec.Raw(b"null")


class SingleBody(msgspec.Struct, gc=False, rename="camel"):
    """The fields of an event that the gateway looks at; of any type, explicit nulls included."""

    user_id: Any = None
    anonymous_id: Any = None
    type: Any = None
    event: Any = None
    message_id: Any = None
    timestamp: Any = None
    original_timestamp: Any = None
    sent_at: Any = None
    write_key: Any = None


class _SingleChecked(SingleBody, gc=False, rename="camel"):
    """A single event is also held to the types of what only ingest will read."""

    message_id: str | None = None
    timestamp: str | None = None
    original_timestamp: str | None = None
    sent_at: str | None = None
    properties: msgspec.Raw = _ABSENT
    traits: msgspec.Raw = _ABSENT
    context: msgspec.Raw = _ABSENT


class BatchBody(msgspec.Struct, gc=False, rename="camel"):
    batch: list[msgspec.Raw] | None = None
    write_key: Any = None
    sent_at: Any = None
    original: bytes = b""
    """Set where the body was read from a copy with its damaged text masked; then `batch` are slices of the copy."""


class _Envelope(msgspec.Struct, gc=False, rename="camel"):
    batch: list[msgspec.Raw] | None = None
    write_key: Any = None
    sent_at: Any = None


_decode_event = msgspec.json.Decoder(SingleBody).decode
_decode_single = msgspec.json.Decoder(_SingleChecked).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_encode = msgspec.json.Encoder().encode


def open_single(body: bytes) -> SingleBody | Refused:
    """Read the body of a single call; whether it may be taken is for `single` to say."""
    if len(body) > MAX_EVENT_BYTES:
        most = f"an event may have {MAX_EVENT_BYTES} bytes; this one has {len(body)}"
        return Refused(413, "event_too_large", most)
    try:
        if not body.isascii():
            body.decode()
        event = _decode_single(body)
    except (ValueError, RecursionError) as error:
        return _unreadable(error)
    for name, given in (("properties", event.properties), ("traits", event.traits), ("context", event.context)):
        if given is not _ABSENT and bytes(given)[:1] not in b"{n":
            return Refused(400, "invalid_body", f"{name} must be an object")
    return event


def open_batch(body: bytes) -> BatchBody | Refused:
    """Read the body of a batch call.

    Broken UTF-8 and lone surrogates make an event unreadable, not its neighbours: the body is then read
    from a copy of the same length in which they are masked.
    """
    original = b""
    try:
        try:
            if not body.isascii():
                body.decode()
            envelope = _decode_envelope(body)
        except msgspec.ValidationError:
            raise
        except ValueError:
            masked = _masked(body)
            if masked == body:
                raise
            envelope = _decode_envelope(masked)
            original = body
    except (ValueError, RecursionError) as error:
        return _unreadable(error)
    if envelope.batch is None:
        return Refused(400, "missing_batch", 'the body needs "batch": a list of events')
    if len(envelope.batch) > MAX_BATCH_EVENTS:
        most = f"a batch may hold {MAX_BATCH_EVENTS} events; this one holds {len(envelope.batch)}"
        return Refused(413, "too_many_events", most)
    return BatchBody(envelope.batch, envelope.write_key, envelope.sent_at, original)


def single(body: SingleBody, kind: str, value: bytes) -> Event | Refused:
    """The one event of a call to `/v1/<kind>`, or what it lacks."""
    for name, given in (("userId", body.user_id), ("anonymousId", body.anonymous_id)):
        fault = _id_fault(given)
        if fault:
            expected = f"a string of 1 to {MAX_ID_CHARS} characters"
            return Refused(400, "invalid_id", f"{name} must be {expected}; this one {fault}")
    user_id = body.user_id or body.anonymous_id
    if not user_id:
        return Refused(400, "missing_id", "an event needs userId or anonymousId")
    if kind == "track" and not _is_id(body.event):
        return Refused(400, "missing_event", f'a track call needs "event", a name of 1 to {MAX_ID_CHARS} characters')
    if body.type is not None and body.type != kind:
        return Refused(400, "wrong_type", f'"type" may be left out here; if given, it must be "{kind}"')
    return user_id, kind, _message_id(body, value), _sent_at(body.sent_at), value


def batch(body: BatchBody) -> list[Event]:
    """Every element of a batch, in order and as it came; sent at the envelope's `sentAt`, else at its own."""
    assert body.batch is not None
    envelope = None if body.sent_at is None else _sent_at(body.sent_at)
    events: list[Event] = []
    values = map(bytes, body.batch) if not body.original else _slices(body)
    for raw, value in zip(body.batch, values, strict=True):
        try:
            event = _decode_event(raw)
        except (ValueError, RecursionError):  # not an object
            events.append((None, "", content_message_id(value), envelope or b"", value))
            continue
        # `_is_id` is written out: this loop is the gateway's hottest
        user_id = event.user_id
        if type(user_id) is not str or not 0 < len(user_id) <= MAX_ID_CHARS or "\x00" in user_id:
            user_id = event.anonymous_id if _is_id(event.anonymous_id) else None
        kind = event.type
        if type(kind) is not str or len(kind) > _MAX_TEXT:
            kind = kind[:_MAX_TEXT] if type(kind) is str else ""
        message_id = event.message_id
        if type(message_id) is not str or not 0 < len(message_id) <= MAX_ID_CHARS or "\x00" in message_id:
            message_id = _message_id(event, value)
        sent_at = _sent_at(event.sent_at) if envelope is None else envelope
        events.append((user_id, kind, message_id, sent_at, value))
    return events


def _unreadable(error: Exception) -> Refused:
    if isinstance(error, msgspec.ValidationError):
        return Refused(400, "invalid_body", f"the body is not of the expected form: {error}")
    if isinstance(error, RecursionError):
        return Refused(400, "malformed_json", "the body is nested too deeply")
    return Refused(400, "malformed_json", f"the body is not JSON: {error}")


def _is_id(given: Any) -> bool:
    return type(given) is str and 0 < len(given) <= MAX_ID_CHARS and "\x00" not in given


def _id_fault(given: Any) -> str:
    """What is wrong with an id; empty for a good one, and for one that is absent, null or empty."""
    if given is None or given == "" or _is_id(given):
        return ""
    if not isinstance(given, str):
        return f"is {'a number' if isinstance(given, int | float) and not isinstance(given, bool) else 'not a string'}"
    return "contains a NUL character" if "\x00" in given else f"has {len(given)} characters"


def _message_id(event: SingleBody, value: bytes) -> str | None:
    given = event.message_id
    if _is_id(given):
        return given  # type: ignore[no-any-return]
    if event.timestamp is not None or event.original_timestamp is not None:
        return content_message_id(value)
    return None


def _sent_at(given: Any) -> bytes:
    if given is None:
        return b""
    if isinstance(given, str):
        try:
            return str(parse_instant(given)).encode()
        except (ValueError, OverflowError):
            return given[:_MAX_TEXT].encode()
    return bytes(_encode(given)[:_MAX_TEXT])


_ESCAPE = re.compile(
    rb"\\(?:(?P<pair>u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def _masked(body: bytes) -> bytes:
    """The body with broken UTF-8 and lone surrogates replaced, byte for byte of the same length."""
    text = body.decode("utf-8", "perennial.mask").encode()
    return _ESCAPE.sub(lambda found: rb"\ufffd" if found["lone"] else found[0], text)


def _mask(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "?" * (error.end - error.start), error.end


codecs.register_error("perennial.mask", _mask)


def _slices(body: BatchBody) -> list[bytes]:
    """The elements of the batch as they stand in the original body."""
    assert body.batch is not None
    masked = _masked(body.original)
    values: list[bytes] = []
    at = masked.find(b'"batch"')
    for raw in body.batch:
        view = bytes(raw)
        at = masked.find(view, at)
        values.append(body.original[at : at + len(view)])
        at += len(view)
    return values
