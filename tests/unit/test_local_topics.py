"""What `judge` and `new_topic` say of topics, without a broker."""

from __future__ import annotations

from services.local.topics import judge, new_topic, partitions_of
from shared.contracts.topics import SPECS, Names, Topic


def complete(shards: int, names: Names) -> dict[str, int]:
    return {names.topic(spec.topic): partitions_of(spec, shards) for spec in SPECS}


def test_a_complete_set_of_topics_is_right() -> None:
    names = Names("a.")
    assert judge(complete(8, names), names, 8) == []


def test_a_missing_topic_is_named_with_the_remedy() -> None:
    names = Names()
    found = complete(8, names)
    del found[Topic.FEED]
    assert judge(found, names, 8) == ["topic user.feed.v1 does not exist: run `perennial migrate`"]


def test_another_number_of_partitions_is_refused() -> None:
    """A user's shard is the partition: another number would move users between owners."""
    names = Names()
    problems = judge(complete(8, names) | {Topic.RAW.value: 9}, names, 8)
    assert len(problems) == 1
    assert "app.events.raw.v1 has 9 partitions and this installation needs 8" in problems[0]


def test_another_installations_topics_do_not_count() -> None:
    assert len(judge(complete(8, Names("b.")), Names("a."), 8)) == len(SPECS)


def test_context_has_one_partition_whatever_the_shards() -> None:
    """Alert chains that meet must be joined in one order."""
    spec = next(spec for spec in SPECS if spec.topic is Topic.CONTEXT)
    assert partitions_of(spec, 64) == 1


def test_only_the_raw_topic_is_stamped_by_the_broker() -> None:
    """Retention by a phone's time would drop history that is uploaded late."""
    stamped = [
        str(spec.topic)
        for spec in SPECS
        if new_topic(spec, Names(), 8, 1).topic_configs.get("message.timestamp.type") == "LogAppendTime"
    ]
    assert stamped == ["app.events.raw.v1"]


def test_three_copies_demand_two_acknowledgements() -> None:
    assert new_topic(SPECS[0], Names(), 8, 3).topic_configs["min.insync.replicas"] == "2"
    assert "min.insync.replicas" not in new_topic(SPECS[0], Names(), 8, 1).topic_configs
