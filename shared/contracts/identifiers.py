"""How ids are made and compared: user ids, shards, message ids, digests, buckets.

The only place besides `shared.process.clock` that may ask the system for randomness.
"""

from __future__ import annotations

import hashlib
import os
import struct
from typing import NewType

UserId = NewType("UserId", str)
Shard = NewType("Shard", int)
CityId = NewType("CityId", int)

MAX_ID_CHARS = 256


def murmur2(data: bytes) -> int:
    """Kafka's murmur2 (32 bit, seed 0x9747b28c), as an unsigned integer.

    Source: `org.apache.kafka.common.utils.Utils.murmur2`.
    """
    m = 0x5BD1E995
    mask = 0xFFFFFFFF
    length = len(data)
    h = 0x9747B28C ^ length
    words = length >> 2
    for k in struct.unpack_from(f"<{words}I", data):
        k = (k * m) & mask
        k ^= k >> 24
        k = (k * m) & mask
        h = ((h * m) & mask) ^ k
    tail = data[words << 2 :]
    extra = len(tail)
    if extra == 3:
        h ^= tail[2] << 16
    if extra >= 2:
        h ^= tail[1] << 8
    if extra >= 1:
        h ^= tail[0]
        h = (h * m) & mask
    h ^= h >> 13
    h = (h * m) & mask
    return h ^ (h >> 15)


def shard_of(user_id: str, shards: int) -> Shard:
    """The shard of a user: `(murmur2(user_id) & 0x7fffffff) % shards`, Java's default partitioner."""
    return Shard((murmur2(user_id.encode()) & 0x7FFFFFFF) % shards)


def record_digest(key: bytes | None, value: bytes | None) -> bytes:
    """Eight bytes that tell a record from one of a re-created log at the same offset."""
    h = hashlib.blake2b(key or b"", digest_size=8)
    h.update(b"\x00")
    h.update(value or b"")
    return h.digest()


def message_hash(message_id: str) -> int:
    """48-bit hash of a client's message id, as kept in the user's ring of seen ids."""
    return int.from_bytes(hashlib.blake2b(message_id.encode(), digest_size=6).digest(), "big")


def content_message_id(body: bytes) -> str:
    """Message id of an event that names none but carries a timestamp: a retry of it hashes alike."""
    return "c-" + hashlib.blake2b(body, digest_size=12).hexdigest()


def fresh_id(prefix: str = "") -> str:
    """A new random id of 24 hex digits."""
    return prefix + os.urandom(12).hex()


def bucket(salt: str, assignment_id: str, buckets: int = 10_000) -> int:
    """Which of `buckets` equal buckets an id falls into; independent for different salts."""
    raw = hashlib.blake2b(f"{salt}:{assignment_id}".encode(), digest_size=8).digest()
    return int.from_bytes(raw, "big") % buckets


def suppression_hash(salt: str, user_id: str) -> bytes:
    """Sixteen bytes by which an erased user is known again, and by nobody who lacks the salt."""
    return hashlib.blake2b(f"erased:{salt}:{user_id}".encode(), digest_size=16).digest()


def alias_id() -> str:
    """What takes the place of an erased user's id: random, so that nothing leads back."""
    return fresh_id("erased-")


def push_message_id(month: str, campaign: str, version: int, user_id: str, occurrence: str) -> str:
    """Message id of a push: `<yymm>-<hash(campaign, version, user, occurrence)>`.

    `month` (of the occurrence) leads, so that the table partition is found from the id alone.
    """
    text = "\x1f".join((campaign, str(version), user_id, occurrence))
    return f"{month}-{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}"
