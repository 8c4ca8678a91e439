"""How ids are made: the same in every process and for ever, because topics and rows are laid out by them."""

from __future__ import annotations

import pytest

from shared.contracts.identifiers import (
    bucket,
    content_message_id,
    fresh_id,
    message_hash,
    murmur2,
    push_message_id,
    record_digest,
    shard_of,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_murmur2_is_kafkas(text: str, expected: int) -> None:
    """Source: `UtilsTest.testMurmur2` of Apache Kafka. Java clients must find the same partition."""
    assert murmur2(text.encode()) == expected & 0xFFFFFFFF


def test_the_client_library_agrees() -> None:
    """aiokafka's default partitioner is an independent port of the same function."""
    from aiokafka.partitioner import DefaultPartitioner

    partitions = list(range(32))
    for n in range(500):
        user = f"user-{n}-ü€😀"[: 6 + n % 12]
        assert shard_of(user, 32) == DefaultPartitioner()(user.encode(), partitions, partitions)


def test_shards_are_even() -> None:
    counts = [0] * 8
    for n in range(8000):
        counts[shard_of(f"u{n}", 8)] += 1
    assert min(counts) > 850
    assert max(counts) < 1150


def test_a_digest_tells_key_from_value() -> None:
    digests = {
        record_digest(key, value)
        for key, value in [(b"a", b"b"), (b"ab", b""), (b"", b"ab"), (None, b"ab"), (b"a", None), (b"b", b"a")]
    }
    # a missing key is an empty one
    assert len(digests) == 5
    assert {len(d) for d in digests} == {8}


def test_ids_of_equal_content_are_equal() -> None:
    assert content_message_id(b"x") == content_message_id(b"x") != content_message_id(b"y")
    assert 0 <= message_hash("m") < 2**48
    assert message_hash("m") == message_hash("m")
    assert len({fresh_id() for _ in range(100)}) == 100


def test_buckets_of_different_salts_are_independent() -> None:
    """Who is held out of one campaign must not be held out of the next one, too."""
    users = [f"u{n}" for n in range(20_000)]
    first = {u for u in users if bucket("s:a", u) < 1000}
    second = {u for u in users if bucket("s:b", u) < 1000}
    assert 1800 < len(first) < 2200
    assert 130 < len(first & second) < 270


def test_a_pushs_id_depends_on_each_part_and_names_its_month() -> None:
    parts = ("2601", "welcome", 1, "u", "o")
    same = push_message_id(*parts)
    assert same == push_message_id(*parts)
    assert same.startswith("2601-")
    others = [
        push_message_id("2602", "welcome", 1, "u", "o"),
        push_message_id("2601", "welcomE", 1, "u", "o"),
        push_message_id("2601", "welcome", 2, "u", "o"),
        push_message_id("2601", "welcome", 1, "v", "o"),
        push_message_id("2601", "welcome", 1, "u", "p"),
        push_message_id("2601", "welcome", 1, "uo", ""),
    ]
    assert len({same, *others}) == 7
