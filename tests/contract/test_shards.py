"""Does everyone who produces to a user-keyed topic agree on the user's partition?"""

from __future__ import annotations

import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.identifiers import murmur2, shard_of

JAVA = {
    "21": -973932308,
    "foobar": -790332482,
    "a-little-bit-long-string": -985981536,
    "a-little-bit-longer-string": -1486304829,
    "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    "abc": 479470107,
}
"""Source: `UtilsTest.testMurmur2` of Apache Kafka's clients."""


@pytest.mark.parametrize(("text", "java"), JAVA.items())
def test_murmur2_is_javas(text: str, java: int) -> None:
    """Java's is a signed int; a Java back end must find the same shard as the gateway."""
    assert murmur2(text.encode()) == java & 0xFFFFFFFF


@given(user_id=st.text(min_size=1, max_size=300), shards=st.integers(1, 1024))
def test_a_users_shard_is_where_a_kafka_client_would_put_them(user_id: str, shards: int) -> None:
    """The client's own partitioner is the oracle, for every length of id and beyond ASCII."""
    key = user_id.encode("utf-8", "surrogatepass")
    if key != user_id.encode("utf-8", "replace"):
        return  # no id holds a lone surrogate: ingest refuses the event
    partitions = list(range(shards))
    assert shard_of(user_id, shards) == DefaultPartitioner()(key, partitions, partitions)
