"""What is kept per user: the hot part every event touches, the cold part only some need.

Encoded as msgpack by position: fields are only appended. Instants are milliseconds, -1 for never. Values
are replaced, never changed in place, so that a shallow copy is a safe one.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from shared.contracts.events import Device

CUSTOMER, REPEAT, LOYAL = 1, 2, 4
MAX_CITIES = 8
MAX_DEVICES = 8


class Visit(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A city searched or added: how often, and when last."""

    city_id: int
    count: int
    last_at: int


class Hot(msgspec.Struct, array_like=True, gc=False):
    """The row an owner caches. `due_at`: the earliest moment anything would change if nothing happened.

    `ring`: the last 32 message ids (see `dedup`). `context_digest` tells whether an event's context is
    the one last folded into the cold part. `flags` are CUSTOMER, REPEAT, LOYAL. `bitmap`: bit n = active
    n days before `last_day` (days since 1970).
    """

    stage: str
    stage_at: int
    activity: str
    activity_at: int
    first_seen_at: int
    last_seen_at: int
    first_activity_at: int = -1
    last_activity_at: int = -1
    session_start_at: int = -1
    session_last_at: int = -1
    session_screens: int = 0
    sessions: int = 0
    screens: int = 0
    opens: int = 0
    activities: int = 0
    last_day: int = -1
    bitmap: int = 0
    active_days: int = 0
    default_city: int = 0
    searched: tuple[Visit, ...] = ()
    added: tuple[Visit, ...] = ()
    segments: tuple[str, ...] = ()
    consents: dict[str, bool] = {}
    flags: int = 0
    orders: int = 0
    order_days: int = 0
    revenue: int = 0
    due_at: int = -1
    rules_version: int = 0
    ring: bytes = b""
    spilled_hour: int = 0
    context_digest: bytes = b""
    first_channel: str = ""
    last_channel: str = ""
    assignment_id: str = ""


class Cold(msgspec.Struct, array_like=True, gc=False):
    """The row read only where an event's context changed: devices (newest last) and profile."""

    devices: tuple[Device, ...] = ()
    locale: str = ""
    timezone: str = ""
    app_version: str = ""


class Change(NamedTuple):
    """Something that is now true of a user: a ledger row before it has a number.

    `cause_type` is event, tick or rules; `occurred_at` the moment it became true, not when it was noticed.
    """

    kind: str
    payload: dict[str, object]
    occurred_at: int
    cause_type: str
    cause_id: str


encode_hot = msgspec.msgpack.Encoder().encode
decode_hot = msgspec.msgpack.Decoder(Hot).decode
encode_cold = msgspec.msgpack.Encoder().encode
decode_cold = msgspec.msgpack.Decoder(Cold).decode
