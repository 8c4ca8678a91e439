"""What shards tell each other of users who turn out to be one: the records of `user.merge.v1`.

Each lies in the partition of the shard of its `user_id`, the user it is about. msgpack, fields by position: fields are
only ever appended. Instants are integer milliseconds since 1970-01-01T00:00:00Z.
"""

from __future__ import annotations

import msgspec

from shared.contracts.events import Accepted


class Asked(msgspec.Struct, array_like=True, tag="q", frozen=True, gc=False):
    """The user is said to be part of `by`; `message_id` names the event that says so."""

    user_id: str
    by: str
    message_id: str
    occurred_at: int
    received_at: int


class Answered(msgspec.Struct, array_like=True, tag="a", frozen=True, gc=False):
    """`other` is part of the user now, with what their shard kept of them (`hot`, `cold`: rows in the segmenter's own
    form; empty where nothing was)."""

    user_id: str
    other: str
    hot: bytes
    cold: bytes
    message_id: str
    occurred_at: int
    received_at: int


class Declined(msgspec.Struct, array_like=True, tag="n", frozen=True, gc=False):
    """`other` does not become part of the user; `reason` says why."""

    user_id: str
    other: str
    reason: str
    message_id: str
    occurred_at: int
    received_at: int


class Forgotten(msgspec.Struct, array_like=True, tag="x", frozen=True, gc=False):
    """`other`, which is the user's id as well, was erased by the request `erasure_id`."""

    user_id: str
    other: str
    erasure_id: str
    occurred_at: int
    received_at: int


class Forwarded(msgspec.Struct, array_like=True, tag="f", frozen=True, gc=False):
    """An event that came under an id which is part of the user, as it was accepted there."""

    user_id: str
    event: Accepted


Told = Asked | Answered | Declined | Forgotten | Forwarded


class MergeRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What shard `shard` tells under the number `(gen, seq)` of its ledger."""

    shard: int
    gen: int
    seq: int
    told: Told


class MergeRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A `MergeRow` as it is sent: `told` is encoded already."""

    shard: int
    gen: int
    seq: int
    told: msgspec.Raw


encode_told = msgspec.msgpack.Encoder().encode
decode_told = msgspec.msgpack.Decoder(Told).decode
decode_merge = msgspec.msgpack.Decoder(MergeRow).decode
