"""Whether a raw record is taken in, refused and why, or belongs elsewhere. Reads no clock.

`judge` is total: whatever bytes stand in raw, it returns a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from services.ingest.domain.intake_http import MAX_EVENT_BYTES
from services.ingest.domain.places import UNKNOWN_PLACE, Places, locate
from services.ingest.domain.tracking_plan import Plan, Violation, refusal
from shared.contracts.events import Context, Device
from shared.contracts.identifiers import MAX_ID_CHARS, shard_of
from shared.contracts.personal import personal
from shared.contracts.rules import Rules, city_events
from shared.kafka.records import InRecord
from shared.process.clock import parse_instant

DAY_MS = 86_400_000
RequestKind = Literal["erase", "readmit"]
"""Modes of records that are no events but requests, as an operator makes them; no tracking call writes these."""
REQUESTS: tuple[RequestKind, ...] = get_args(RequestKind)
_POSTED = ("live", "replay")
"""Events of phones: their clocks are corrected and their age is bounded, by when they were received first."""
MAX_TEXT = 1024
_REMEMBERED_USERS = 32_768
_REMEMBERED_PLACES = 8_192
_REMEMBERED_TERMS = 4_096
"""Names of events, versions, zones: apps say few of them, again and again."""
_CALLS = {
    "track": "",
    "screen": "$screen",
    "page": "$page",
    "identify": "$identify",
    "group": "$group",
    "alias": "$alias",
}
_IDENTIFYING = ("$identify", "$alias")
"""Calls that say who a `userId` is, and which other id is theirs."""


class RawRecord(NamedTuple):
    """One record of `app.events.raw.v1`; `received_at` is the header's, else the record's own time."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]
    received_at: int


def raw_record(record: InRecord, now: int) -> RawRecord:
    """A record of raw as it was read. What was received when is the gateway's word, but never later than `now`."""
    headers = dict(record.headers)
    told = headers.get("received_at", b"")
    received = int(told) if told.isdigit() and len(told) < 16 else record.timestamp
    return RawRecord(record.partition, record.offset, record.key, record.value, headers, min(received, now))


class Taken(NamedTuple):
    """The event is accepted: what the decision record carries of it; and what its tracking plan found wrong."""

    user_id: str
    message_id: str
    name: str
    occurred_at: int
    mode: str
    source: str
    city_id: int | None
    properties: dict[str, Any]
    context: Context | None
    violations: tuple[Violation, ...] = ()
    identifies: str | None = None


class Refused(NamedTuple):
    """`violations`: of the tracking plan, where the event is rejected for them."""

    user_id: str
    message_id: str
    reason: str
    source: str
    violations: tuple[Violation, ...] = ()


class Requested(NamedTuple):
    """No event but a request: to erase the user, or to readmit one who is erased. `message_id` is the request's."""

    user_id: str
    message_id: str
    readmit: bool


class Misplaced(NamedTuple):
    """The record does not lie in its user's partition under its user's id; it has to go to `shard`."""

    user_id: str
    message_id: str
    shard: int


Verdict = Taken | Refused | Requested | Misplaced


class Posted(NamedTuple):
    """What an event is called, what it says, and of whom."""

    name: str
    properties: dict[str, Any]
    user_id: str


class _Unfit(NamedTuple):
    """The tracking plan rejects the event."""

    reason: str
    violations: tuple[Violation, ...]


class _Event(msgspec.Struct):
    type: str | None = None
    event: str | None = None
    user_id: str | None = msgspec.field(default=None, name="userId")
    anonymous_id: str | None = msgspec.field(default=None, name="anonymousId")
    previous_id: str | None = msgspec.field(default=None, name="previousId")
    message_id: str | None = msgspec.field(default=None, name="messageId")
    timestamp: str | None = None
    original_timestamp: str | None = msgspec.field(default=None, name="originalTimestamp")
    sent_at: str | None = msgspec.field(default=None, name="sentAt")
    properties: dict[str, Any] | None = None
    traits: dict[str, Any] | None = None
    context: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Event).decode


def posted(raw: RawRecord) -> Posted | None:
    """The event as its app posted it, whatever rules say of it; None where the bytes are no event of a user."""
    if raw.value is None or len(raw.value) > MAX_EVENT_BYTES:
        return None
    try:
        event = _decode(raw.value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    name, user_id = _name(event, raw), event.user_id or event.anonymous_id
    if name is None or _nameless(name) or not user_id:
        return None
    return Posted(name, event.properties or {}, user_id)


class _Remembered:
    """A gazetteer that looks up each spelling once: apps name few cities, again and again."""

    def __init__(self, gazetteer: Places) -> None:
        self.normalise = lru_cache(_REMEMBERED_PLACES)(gazetteer.normalise)
        self.nearest = gazetteer.nearest


class Intake:
    """`judge` for one rules version: what is looked up per event is prepared once."""

    def __init__(self, rules: Rules, gazetteer: Places, shards: int) -> None:
        self._places = _Remembered(gazetteer)
        # a user's next events follow within minutes, and both are slow to find out
        self._shard_of = lru_cache(_REMEMBERED_USERS)(lambda user_id: shard_of(user_id, shards))
        self._personal_id = lru_cache(_REMEMBERED_USERS)(personal)
        self._personal_term = lru_cache(_REMEMBERED_TERMS)(personal)
        self._pii_less = rules.privacy.pii_less
        self._allowed = {name: frozenset(keys) for name, keys in rules.intake.properties.items()}
        self._too_old_ms = rules.intake.too_old_days * DAY_MS
        self._future_ms = rules.intake.future_days * DAY_MS
        self._city_events = city_events(rules)
        self._plan = Plan(rules)

    def judge(self, raw: RawRecord) -> Verdict:
        """The verdict on one raw record; reasons are `code` or `code:detail`."""
        headers = raw.headers
        source = _text(headers.get("source"))
        told = _text(headers.get("message_id"))
        if _wrong_id(told):
            told = ""
        fallback = told or f"o-{raw.partition}-{raw.offset}"
        # a refusal is kept under these two: any producer may have written what no database takes
        key = _text(raw.key)
        named = "" if _wrong_id(key) else key
        if raw.value is None:
            return Refused(named, fallback, "empty", source)
        if len(raw.value) > MAX_EVENT_BYTES:
            return Refused(named, fallback, "too_large", source)
        try:
            event = _decode(raw.value)
        except msgspec.ValidationError as error:
            return Refused(named, fallback, f"invalid_field:{_field_of(error)}", source)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Refused(named, fallback, "malformed_json", source)
        message_id = told or event.message_id or fallback
        user_id = event.user_id or event.anonymous_id
        if not user_id:
            return Refused(named, fallback, "missing_id", source)
        wrong = _wrong_id(user_id) or _wrong_id(message_id)
        if wrong:
            return Refused(named, fallback, wrong, source)
        shard = self._shard_of(user_id)
        if shard != raw.partition or key != user_id:
            return Misplaced(user_id, message_id, shard)
        mode = _text(headers.get("mode"))
        if mode in REQUESTS:
            # whatever the id looks like: nothing may be kept of a person because their id names them
            return Requested(user_id, message_id, mode == "readmit")
        verdict = self._content(event, raw, user_id, message_id, source)
        if isinstance(verdict, Taken):
            return verdict
        reason, violations = verdict if isinstance(verdict, _Unfit) else (verdict, ())
        return Refused(user_id, message_id, reason, source, violations)

    def _content(
        self, event: _Event, raw: RawRecord, user_id: str, message_id: str, source: str
    ) -> Taken | _Unfit | str:
        """The event as accepted, or the reason why not."""
        name = _name(event, raw)
        if name is None:
            return "unknown_type"
        if _nameless(name):
            return "missing_event"
        if self._pii_less and self._personal_term(name):
            return "pii:event"
        mode = _text(raw.headers.get("mode")) or "live"
        occurred = self._occurred_at(event, raw, mode)
        if isinstance(occurred, str):
            return occurred
        city_id = None
        properties, violations = self._plan.check(name, event.properties or {})
        if violations and (reason := refusal(violations)):
            return _Unfit(reason, violations)
        if name in self._city_events:
            city = locate(properties, self._places)
            if city is None:
                return "missing_city"
            if city is UNKNOWN_PLACE:
                return "unknown_city"
            city_id = int(city)
        kept = self._properties(name, properties)
        if isinstance(kept, str):
            return kept
        if self._pii_less and self._personal_id(user_id):
            return "pii:user_id"
        context = _context(event.context)
        if isinstance(context, str):
            return context
        if self._pii_less and context is not None and self._names_somebody(context):
            return "pii:context"
        identifies = _identifies(event, raw) if name in _IDENTIFYING else None
        wrong = self._wrong_other(identifies) if identifies else None
        if wrong is not None:
            return wrong
        return Taken(user_id, message_id, name, occurred, mode, source, city_id, kept, context, violations, identifies)

    def _wrong_other(self, user_id: str) -> str | None:
        """What is wrong with another id that an event names for its user: events under it would be refused, too."""
        return _wrong_id(user_id) or ("pii:user_id" if self._pii_less and self._personal_id(user_id) else None)

    def _names_somebody(self, context: Context) -> bool:
        # in one go, for it is asked of every event; neither kind of name reaches over a line's end
        return self._personal_term(f"{context.locale}\n{context.timezone}\n{context.app_version}\n{context.campaign}")

    def _occurred_at(self, event: _Event, raw: RawRecord, mode: str) -> int | str:
        """The phone's time corrected by its clock's error, never later than it was received.

        Source: Segment's specification of `timestamp`, `sentAt` and `receivedAt`.
        """
        told = event.timestamp or event.original_timestamp
        if told is None:
            return raw.received_at
        sent = event.sent_at or _text(raw.headers.get("sent_at"))
        try:
            at = parse_instant(told)
            sent_at = (int(sent) if sent.isdecimal() else parse_instant(sent)) if sent else None
        except (ValueError, OverflowError):
            return "bad_timestamp"
        if mode in _POSTED and sent_at is not None:
            at = raw.received_at - (sent_at - at)
        if at > raw.received_at + self._future_ms:
            return "future"
        if at < 0 or (mode in _POSTED and at < raw.received_at - self._too_old_ms):
            return "too_old"
        return min(at, raw.received_at)

    def _properties(self, name: str, properties: Mapping[str, Any]) -> dict[str, Any] | str:
        """The properties the pack lists for this event, as scalars; or why the event is refused."""
        kept: dict[str, Any] = {}
        for key in self._allowed.get(name, ()):
            value = properties.get(key)
            if value is None:
                continue
            if isinstance(value, str):
                if "\x00" in value:
                    return f"nul_character:{key}"
                if self._pii_less and personal(value):
                    return f"pii:{key}"
                kept[key] = value[:MAX_TEXT]
            elif _is_number(value):
                kept[key] = value
            elif isinstance(value, dict) and name not in self._city_events:
                kept[key] = {k: v for k, v in value.items() if isinstance(v, bool)}
            else:
                return f"invalid_property:{key}"
        return kept


def _identifies(event: _Event, raw: RawRecord) -> str | None:
    """The other id of the user, empty where an event only says who they are; None where it does not say even that."""
    call = event.type or _text(raw.headers.get("type"))
    if call == "track" or not event.user_id:
        return None
    return (call == "alias" and event.previous_id) or event.anonymous_id or ""


def _context(context: Mapping[str, Any] | None) -> Context | None | str:
    if not context:
        return None
    device = context.get("device")
    app, campaign = context.get("app"), context.get("campaign")
    texts = [
        context.get("locale"),
        context.get("timezone"),
        app.get("version") if isinstance(app, dict) else None,
        campaign.get("source") if isinstance(campaign, dict) else None,
    ]
    kept: list[str | None] = []
    for text in texts:
        if isinstance(text, str) and "\x00" in text:
            return "nul_character:context"
        kept.append(text[:64] if isinstance(text, str) and text else None)
    found = _device(device) if isinstance(device, dict) else None
    if isinstance(found, str):
        return found
    if found is None and not any(kept):
        return None
    return Context(found, *kept)


def _device(device: Mapping[str, Any]) -> Device | None | str:
    token, kind, device_id = device.get("token"), device.get("type"), device.get("id")
    if not isinstance(token, str) or not token:
        return None
    if "\x00" in token or len(token) > 4096:
        return "invalid_property:context.device.token"
    kind = kind.lower() if isinstance(kind, str) else ""
    if kind not in ("ios", "android", "web"):
        return "invalid_property:context.device.type"
    if not isinstance(device_id, str) or not device_id:
        device_id = token
    if "\x00" in device_id:
        return "nul_character:context.device.id"
    return Device(device_id[:MAX_ID_CHARS], kind, token)


def _name(event: _Event, raw: RawRecord) -> str | None:
    """What the event is called; None where its call is unknown."""
    call = event.type or _text(raw.headers.get("type"))
    return (_CALLS[call] or event.event or "") if call in _CALLS else None


def _nameless(name: str) -> bool:
    return not name or "\x00" in name or len(name) > MAX_ID_CHARS


def _is_number(value: object) -> bool:
    """A truth value, or a number that JSON, msgpack and Postgres all can hold."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and abs(value) < 2**63


def _wrong_id(text: str) -> str | None:
    if "\x00" in text:
        return "nul_character:id"
    if len(text) > MAX_ID_CHARS:
        return "id_too_long"
    return None


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("utf-8", "replace")


def _field_of(error: msgspec.ValidationError) -> str:
    _, _, path = str(error).partition("`$.")
    return path.rstrip("`") or "$"
