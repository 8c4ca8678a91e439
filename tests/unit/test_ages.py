"""Do the ages and lags that alerts look at grow while nothing goes on, and only then?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError
from prometheus_client import REGISTRY

from services.notifier.pipeline import Notifier
from services.segmenter.pipeline import Segmenter
from services.segmenter.shard import ShardState
from shared.kafka.fenced_reader import FencedReader
from shared.kafka.held import Held
from shared.kafka.relay import Relay
from shared.kafka.shard_consumer import ShardConsumer
from shared.process.http import Health

SEGMENTER, NOTIFIER = "perennial_segmenter_watermark_age_seconds", "perennial_notifier_feed_age_seconds"


class _Clock:
    def __init__(self) -> None:
        self.now = 1_000_000

    def now_ms(self) -> int:
        return self.now


def _segmenter(clock: Any) -> Segmenter:
    nothing: Any = SimpleNamespace(
        disown=lambda: None, disown_all=lambda: None, put=lambda *_: None, time=lambda *_: None
    )
    one = Segmenter(nothing, nothing, nothing, nothing, clock, merges=nothing, all_shards=1, most_cached=1000)
    one.reader = SimpleNamespace(spare=False, shards={})  # type: ignore[assignment]
    return one


def _watermark(one: Segmenter, at: int) -> None:
    state = ShardState(0)
    state.watermark = state.told_time = at
    one._shards = {0: state, 1: ShardState(1)}
    one._tell_time()


async def test_the_watermarks_age_grows_while_the_shards_are_let_go() -> None:
    """With Postgres away every batch fails, the shards are let go, and no loop comes round to say how late it is."""
    clock = _Clock()
    one = _segmenter(clock)
    assert REGISTRY.get_sample_value(SEGMENTER) == 0, "nothing was ever posted"
    _watermark(one, clock.now - 2_000)
    assert REGISTRY.get_sample_value(SEGMENTER) == 2
    one.drop()
    clock.now += 300_000
    assert REGISTRY.get_sample_value(SEGMENTER) == 302


async def test_a_replica_to_which_the_group_gives_nothing_is_not_late() -> None:
    clock = _Clock()
    one = _segmenter(clock)
    _watermark(one, clock.now - 2_000)
    one.drop()
    one.reader = SimpleNamespace(spare=True)  # type: ignore[assignment]
    clock.now += 300_000
    assert REGISTRY.get_sample_value(SEGMENTER) == 0


async def test_the_feeds_age_is_that_of_the_shard_told_least() -> None:
    clock = _Clock()
    quiet: Any = SimpleNamespace(disown_all=lambda: None, disown=lambda: None, own=lambda _: None)
    one = Notifier(
        pool=quiet, book=quiet, relay=quiet, dispatcher=quiet, runs=quiet, clock=clock, gazetteer=quiet, most_cached=1000  # type: ignore[arg-type]
    )  # fmt: skip
    one.reader = SimpleNamespace(spare=False)  # type: ignore[assignment]
    assert REGISTRY.get_sample_value(NOTIFIER) == 0, "no time was told yet"
    one._told = {0: clock.now - 1_000, 1: clock.now - 9_000}
    assert REGISTRY.get_sample_value(NOTIFIER) == 9
    one.drop()
    clock.now += 60_000
    assert REGISTRY.get_sample_value(NOTIFIER) == 69
    shards: Any = {0: None}
    await one.take(None, shards)  # type: ignore[arg-type]
    assert REGISTRY.get_sample_value(NOTIFIER) == 61, "shard 1 is another's to tell of"


class _Ends:
    """A consumer that was told the end of some partitions, and no longer has others."""

    def highwater(self, partition: TopicPartition) -> int | None:
        if partition.partition == 2:
            raise IllegalStateError("not assigned")
        return {0: 100, 1: None}[partition.partition]


def _consumer() -> ShardConsumer:
    one = ShardConsumer.__new__(ShardConsumer)
    one.topic, one.generation = "t", 1
    one._consumer, one._positions, one._held = _Ends(), {0: 60, 1: 5, 2: 7}, Held("t")
    return one


def test_the_lag_is_what_was_not_read_where_the_end_is_known() -> None:
    one = _consumer()
    assert one.lag() == 40
    one._positions[0] = 130
    assert one.lag() == 0, "the end told last is older than what is read"


async def test_rare_counters_stand_at_zero_before_they_count() -> None:
    """The first of a new series is no increase: an alert on a first gap or bug would never fire."""
    service, nothing = "just_begun", SimpleNamespace()
    reader = FencedReader(
        service=service, topic="t", consumer=_consumer(), reader=nothing, pool=nothing, worker=nothing,  # type: ignore[arg-type]
        health=Health(), numbers_survive=True, max_records=1, heartbeat_seconds=1,
    )  # fmt: skip
    Relay(service, nothing, nothing, nothing)  # type: ignore[arg-type]
    for name in ("gap_records", "bugs", "fenced", "repeated_records", "transient_failures", "relay_rows"):
        assert REGISTRY.get_sample_value(f"perennial_{name}_total", {"service": service}) == 0, name
    assert REGISTRY.get_sample_value("perennial_input_lag_records", {"service": service}) == 40
    assert not reader.spare
    reader._generation = 1
    assert reader.spare, "nothing is owned, and the group has no other word"


@pytest.mark.parametrize("status", ["200", "429", "500", "503"])
def test_refusals_stand_at_zero_before_the_first(status: str) -> None:
    from services.ingest.gateway.tracking import Tracking

    away: Any = SimpleNamespace(away="gone")
    nothing: Any = None
    Tracking(nothing, nothing, nothing, away, nothing, nothing, nothing)
    assert REGISTRY.get_sample_value("perennial_gateway_requests_total", {"status": status}) is not None
    assert REGISTRY.get_sample_value("perennial_gateway_broker_away") == 1
