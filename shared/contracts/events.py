"""What the records of the private topics look like, and how they are encoded.

msgpack, fields by position: fields are only ever appended. Instants are integer milliseconds since
1970-01-01T00:00:00Z.
"""

from __future__ import annotations

from typing import Any

import msgspec

PRIVATE = "application/x-perennial-msgpack"


class Device(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A device that can be pushed to; `type` is `ios`, `android` or `web`."""

    id: str
    type: str
    token: str


class Context(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What an event tells of the phone it came from; `campaign` is the UTM source."""

    device: Device | None = None
    locale: str | None = None
    timezone: str | None = None
    app_version: str | None = None
    campaign: str | None = None


class Accepted(msgspec.Struct, array_like=True, tag="a", frozen=True, gc=False):
    """Raw record `src` was taken in.

    `prev` is the `src` decided before it, `digest` that of raw[src], `rules` the version it was decided
    under. `name` is the event's name; `screen`, `page`, `identify` calls are `$screen`, `$page`,
    `$identify`. `city_id` is set where the event names a place the gazetteer knows. `identifies` is set where an
    `identify` or `alias` call says who `user_id` is: the other id it names for them, empty where it names none.
    """

    src: int
    prev: int
    digest: bytes
    rules: int
    user_id: str
    message_id: str
    name: str
    occurred_at: int
    received_at: int
    mode: str
    source: str
    city_id: int | None
    properties: dict[str, Any]
    context: Context | None
    identifies: str | None = None


class Rejected(msgspec.Struct, array_like=True, tag="r", frozen=True, gc=False):
    """Raw record `src` was refused; the bytes stay in raw, `reason` is `code` or `code:detail`. `replay`: it was a dead
    letter before."""

    src: int
    prev: int
    digest: bytes
    rules: int
    user_id: str
    message_id: str
    reason: str
    received_at: int
    source: str
    replay: bool = False


class Moved(msgspec.Struct, array_like=True, tag="m", frozen=True, gc=False):
    """Raw record `src` lay in a partition that is not its user's and was produced again to `to`."""

    src: int
    prev: int
    digest: bytes
    rules: int
    to: int


class Erase(msgspec.Struct, array_like=True, tag="e", frozen=True, gc=False):
    """Raw record `src` asks that nothing be kept of a user any more, nor taken in of them from here on."""

    src: int
    prev: int
    digest: bytes
    rules: int
    user_id: str
    erasure_id: str
    received_at: int


class Readmit(msgspec.Struct, array_like=True, tag="u", frozen=True, gc=False):
    """Raw record `src` asks that an erased user be taken in again, as somebody new."""

    src: int
    prev: int
    digest: bytes
    rules: int
    user_id: str
    erasure_id: str
    received_at: int


class TimeRecord(msgspec.Struct, array_like=True, tag="t", frozen=True, gc=False):
    """Everything received up to `as_of` has been decided; `src` is the last decision (-1: none yet).

    `digest` is that of raw[src], so that a log's last record always proves where ingest stood.
    """

    src: int
    digest: bytes
    rules: int
    as_of: int


Decision = Accepted | Rejected | Moved | Erase | Readmit | TimeRecord


class FeedRow(msgspec.Struct, array_like=True, tag="f", frozen=True, gc=False):
    """One row of a shard's ledger or outbox, as the feed carries it.

    `prev_seq` is the row before it on this topic. `cause` is (type, id); `src` the offset in
    `app.events.raw.v1` of the event that caused it (-1 where none did).
    """

    gen: int
    seq: int
    prev_seq: int
    user_id: str
    kind: str
    payload: dict[str, Any]
    occurred_at: int
    recorded_at: int
    cause: tuple[str, str]
    src: int
    rules: int


class FeedTime(msgspec.Struct, array_like=True, tag="t", frozen=True, gc=False):
    """All that was received up to `as_of`, and all that fell due by then, is among the shard's rows up to `(gen, seq)`,
    which lie before this record in the feed."""

    gen: int
    seq: int
    as_of: int


Feed = FeedRow | FeedTime

encode = msgspec.msgpack.Encoder().encode
decode_decision = msgspec.msgpack.Decoder(Decision).decode
decode_feed = msgspec.msgpack.Decoder(Feed).decode
