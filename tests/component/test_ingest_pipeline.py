"""Under which rules are the records of one poll decided, when newer ones come while it is sent?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from aiokafka.structs import ConsumerRecord

from services.ingest.consumer.pipeline import Pipeline, _Partition
from services.ingest.domain.intake import Intake
from services.packs import load_pack
from shared.contracts.events import TimeRecord, decode_decision
from shared.contracts.identifiers import shard_of
from shared.gazetteer import load
from shared.kafka.sender import Record, SendFailed
from shared.kafka.shard_consumer import Polled
from shared.process.clock import Clock
from shared.process.http import Health

SHARDS = 4
NOW = Clock().real_ms()


class Consumer:
    generation = 1

    def lag(self) -> int:
        return 0

    def held_seconds(self) -> float:
        return 0.0

    def at_end(self, shard: int, position: int) -> tuple[bool, int]:
        return True, 1


class Sender:
    """Acknowledges everything but what goes to `refuse`; `then` happens at the first send."""

    def __init__(self, refuse: frozenset[int] = frozenset()) -> None:
        self.sent: list[tuple[int, Any]] = []
        self._refuse = refuse
        self.then: Callable[[], None] = lambda: None

    async def send(self, topic: str, partition: int, records: Sequence[Record]) -> int:
        self.then()
        self.sent += [(partition, decode_decision(record.value)) for record in records]
        if partition in self._refuse:
            raise SendFailed("refused")
        return len(records)


def made(sender: Sender) -> Pipeline:
    found = Pipeline(
        consumer=Consumer(), reader=None, sender=sender, clock=Clock(), health=Health(), raw_topic="raw",  # type: ignore[arg-type]
        events_topic="events", batch_records=100, time_seconds=3600,
    )  # fmt: skip
    found.use_rules(1, Intake(load_pack("weather"), load(), SHARDS))
    found._partitions = {p: _Partition(-1, b"", 0, rules=1) for p in range(SHARDS)}
    return found


def polled() -> Polled:
    records: dict[int, list[Any]] = {p: [] for p in range(SHARDS)}
    for n in range(40):
        user = f"user-{n}"
        p = shard_of(user, SHARDS)
        value = msgspec.json.encode(
            {"type": "track", "event": "Application Opened", "userId": user, "messageId": f"m{n}"}
        )
        key = user.encode()
        records[p].append(ConsumerRecord("raw", p, len(records[p]), NOW, 1, key, value, None, len(key), len(value), ()))
    assert all(records.values())
    return Polled(records, {p: len(several) for p, several in records.items()})


async def test_newer_rules_wait_for_the_next_poll_and_are_told_to_every_partition() -> None:
    """Partitions are judged while others are sent. Were the version looked up anew for each, or noted after, a partition
    would count as told of rules that none of its records carries."""
    sender = Sender()
    pipeline = made(sender)
    sender.then = lambda: pipeline.use_rules(2, Intake(load_pack("weather"), load(), SHARDS))
    await pipeline._decide(polled())
    assert {decision.rules for _, decision in sender.sent} == {1}
    sender.sent.clear()
    await pipeline._tell_time()
    assert {p: (type(told), told.rules) for p, told in sender.sent} == dict.fromkeys(range(SHARDS), (TimeRecord, 2))


async def test_one_refused_partition_makes_all_resume() -> None:
    sender = Sender(refuse=frozenset({1}))
    pipeline = made(sender)
    with pytest.raises(SendFailed):
        await pipeline._decide(polled())
    assert pipeline._generation == -1
    assert {p for p, _ in sender.sent} == set(range(SHARDS))
