"""Committed rows reach their topics in order, whatever the broker refuses, and what was acknowledged is noted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from shared.kafka import relay as relay_module
from shared.kafka.relay import Published, Relay
from shared.kafka.sender import Record, Sender, SendFailed
from shared.process.errors import Transient
from tests.support.spine import until


class Broker(Sender):
    """Keeps what it is sent; `refusals` says what to do with the next calls: before, after, bug."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int], list[bytes]] = {}
        self.refusals: list[str] = []
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, topic: str, partition: int, records: Any) -> int:
        await self.open.wait()
        what = self.refusals.pop(0) if self.refusals else ""
        if what == "bug":
            raise ZeroDivisionError
        if what == "before":
            raise SendFailed("no")
        self.kept.setdefault((topic, partition), []).extend(r.value for r in records)
        if what == "after":
            raise SendFailed("lost answer")
        return 0


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    monkeypatch.setattr(relay_module, "_NOTE_SECONDS", 0.01)
    monkeypatch.setattr(relay_module, "backoff_seconds", lambda *_: 0.001)
    return Broker()


class _Noted:
    def __init__(self) -> None:
        self.seqs: dict[int, int] = {}
        self.fail = 0

    async def __call__(self, seqs: Mapping[int, int]) -> None:
        if self.fail:
            self.fail -= 1
            raise Transient("database away")
        for shard, seq in seqs.items():
            self.seqs[shard] = max(seq, self.seqs.get(shard, 0))


def _publish(row: int) -> Published:
    records = [("all", Record(b"k", b"%d" % row))]
    if row % 2:
        records.append(("odd", Record(b"k", b"%d" % row)))
    return Published(row, records)


@pytest.fixture
async def relaying(broker: Broker) -> AsyncIterator[tuple[Relay[int], _Noted]]:
    noted = _Noted()
    relay = Relay("test", broker, _publish, noted, most_pending=50)
    task = asyncio.create_task(relay.run())
    yield relay, noted
    task.cancel()
    await asyncio.wait({task})
    await relay.stop()


def _once(values: list[bytes]) -> list[int]:
    last, kept = 0, []
    for value in map(int, values):
        if value > last:
            kept.append(value)
            last = value
    return kept


@pytest.mark.parametrize("refusals", [[], ["before"] * 5, ["after"] * 5, ["before", "after", "", "after", "before"]])
async def test_every_row_arrives_in_order_on_each_of_its_topics(
    broker: Broker, relaying: tuple[Relay[int], _Noted], refusals: list[str]
) -> None:
    relay, noted = relaying
    broker.refusals = list(refusals)
    relay.own([3])
    for start in range(1, 101, 10):
        relay.put(3, range(start, start + 10))
        await asyncio.sleep(0)

    async def done() -> bool:
        return noted.seqs.get(3) == 100

    await until(done)
    assert _once(broker.kept["all", 3]) == list(range(1, 101))
    assert _once(broker.kept["odd", 3]) == list(range(1, 101, 2))


async def test_what_was_not_acknowledged_is_not_noted(broker: Broker, relaying: tuple[Relay[int], _Noted]) -> None:
    """The next owner reads on from what is noted: one number too many, and a row is lost for ever."""
    relay, noted = relaying
    broker.refusals = ["before"] * 1000
    relay.own([0])
    relay.put(0, [1, 2, 3])
    await asyncio.sleep(0.05)
    assert noted.seqs == {}
    broker.refusals = []

    async def done() -> bool:
        return noted.seqs.get(0) == 3

    await until(done)


async def test_what_could_not_be_noted_is_noted_later(broker: Broker, relaying: tuple[Relay[int], _Noted]) -> None:
    relay, noted = relaying
    noted.fail = 3
    relay.own([0])
    relay.put(0, [1, 2])

    async def done() -> bool:
        return noted.seqs.get(0) == 2

    await until(done)


async def test_rows_of_a_lost_shard_are_not_sent_any_more(broker: Broker, relaying: tuple[Relay[int], _Noted]) -> None:
    relay, _ = relaying
    broker.open.clear()
    relay.own([0, 1])
    relay.put(0, [1])
    relay.put(1, [1])
    await asyncio.sleep(0.01)
    relay.own([1])
    relay.put(0, [2])
    relay.put(1, [2])
    broker.open.set()

    async def done() -> bool:
        return broker.kept.get(("all", 1)) == [b"1", b"2"]

    await until(done)
    assert ("all", 0) not in broker.kept


async def test_the_pipeline_waits_while_too_much_is_pending(
    broker: Broker, relaying: tuple[Relay[int], _Noted]
) -> None:
    """Otherwise a broker that is away for an hour takes the memory of the service with it."""
    relay, _ = relaying
    relay.own([0])
    broker.open.clear()
    relay.put(0, range(1, 52))
    waiting = asyncio.create_task(relay.room())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    broker.open.set()
    await asyncio.wait_for(waiting, 5)


async def test_room_comes_back_also_when_the_shard_goes(broker: Broker, relaying: tuple[Relay[int], _Noted]) -> None:
    """What is dropped is no longer pending; a count that only grows would stop the service for good."""
    relay, _ = relaying
    broker.open.clear()
    for _ in range(5):
        relay.own([0])
        relay.put(0, [1])
        await asyncio.sleep(0.005)
        relay.put(0, range(2, 200))  # these wait behind the batch on the wire
        relay.disown_all()
        await asyncio.sleep(0.005)
    assert relay._pending == 0
    await asyncio.wait_for(relay.room(), 1)


async def test_a_bug_ends_the_relay_and_with_it_the_process(broker: Broker) -> None:
    relay = Relay("test", broker, _publish, _Noted())
    relay.own([0])
    broker.refusals = ["bug"]
    relay.put(0, [1])
    with pytest.raises(RuntimeError, match="relay of shard 0") as found:
        await asyncio.wait_for(relay.run(), 5)
    assert isinstance(found.value.__cause__, ZeroDivisionError)
    await relay.stop()


async def test_stopping_notes_what_is_known(broker: Broker) -> None:
    noted = _Noted()
    relay = Relay("test", broker, _publish, noted)
    relay.own([0])
    relay.put(0, [1, 2])
    await asyncio.sleep(0.02)
    await relay.stop()
    assert noted.seqs == {0: 2}
