"""That many requests become few batches, each answered for what became of its own events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.ingest.gateway.budget import Budget
from services.ingest.gateway.collector import Collector, Outcome
from shared.kafka.sender import Record, SendFailed
from shared.process.http import Health


class HeldOutlet:
    """A broker whose acknowledgements the test gives by hand."""

    def __init__(self) -> None:
        self.away = ""
        self.flights: list[tuple[int, list[bytes], asyncio.Future[None]]] = []
        self.doubts = 0

    async def send(self, partition: int, records: list[Record]) -> None:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.flights.append((partition, [record.value for record in records], answer))
        await answer

    def suspect(self) -> None:
        self.doubts += 1

    async def next(self, index: int) -> tuple[int, list[bytes], asyncio.Future[None]]:
        async with asyncio.timeout(5):
            while len(self.flights) <= index:
                await asyncio.sleep(0)
        return self.flights[index]


def group(*values: bytes) -> list[Record]:
    return [Record(b"k", value, []) for value in values]


@asynccontextmanager
async def collecting(deadline: float = 5.0) -> AsyncIterator[tuple[Collector, HeldOutlet, Budget]]:
    outlet, budget = HeldOutlet(), Budget(1_000)
    collector = Collector(outlet, 4, budget, deadline, Health())
    running = asyncio.create_task(collector.run())
    yield collector, outlet, budget
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_what_arrives_while_a_partition_is_in_flight_goes_together_and_in_order() -> None:
    async with collecting() as (collector, outlet, _):
        first = collector.post({1: group(b"a")}, 0)
        partition, values, acknowledged = await outlet.next(0)
        assert (partition, values) == (1, [b"a"])
        rest = [collector.post({1: group(b"b", b"c")}, 0), collector.post({1: group(b"d")}, 0)]
        await asyncio.sleep(0.02)
        assert len(outlet.flights) == 1, "two batches of one partition were in flight"
        acknowledged.set_result(None)
        assert await first is Outcome.ACKNOWLEDGED
        _, values, acknowledged = await outlet.next(1)
        assert values == [b"b", b"c", b"d"]
        acknowledged.set_result(None)
        assert [await answer for answer in rest] == [Outcome.ACKNOWLEDGED] * 2


async def test_a_request_waits_for_all_its_partitions() -> None:
    async with collecting() as (collector, outlet, budget):
        assert budget.take(10)
        answer = collector.post({0: group(b"a"), 3: group(b"b")}, 10)
        (await outlet.next(0))[2].set_result(None)
        await outlet.next(1)
        await asyncio.sleep(0.02)
        assert not answer.done()
        outlet.flights[1][2].set_result(None)
        assert await answer is Outcome.ACKNOWLEDGED
        assert budget.used == 0


async def test_a_refused_batch_fails_the_requests_in_it_and_no_others() -> None:
    async with collecting() as (collector, outlet, budget):
        assert budget.take(30)
        lost = [collector.post({2: group(b"a")}, 10)]
        await outlet.next(0)
        kept = collector.post({2: group(b"b")}, 10)
        lost.append(collector.post({1: group(b"c"), 3: group(b"d")}, 10))
        await outlet.next(2)
        for partition, _, acknowledged in outlet.flights[:3]:
            if partition == 3:
                acknowledged.set_result(None)
            else:
                acknowledged.set_exception(SendFailed("refused"))
        assert [await answer for answer in lost] == [Outcome.FAILED] * 2
        (await outlet.next(3))[2].set_result(None)
        assert await kept is Outcome.ACKNOWLEDGED
        assert budget.used == 0
        assert outlet.doubts == 2


async def test_a_late_request_is_answered_while_its_bytes_stay_counted() -> None:
    """What the producer still holds is still memory; giving it back at the deadline would let a hanging
    broker fill the process."""
    async with collecting(deadline=0.05) as (collector, outlet, budget):
        assert budget.take(20)
        flying, waiting = collector.post({0: group(b"a")}, 10), collector.post({0: group(b"b")}, 10)
        assert await flying is Outcome.LATE
        assert await waiting is Outcome.LATE
        assert budget.used == 20
        outlet.flights[0][2].set_result(None)
        await collector.drain()
        assert budget.used == 0
        assert len(outlet.flights) == 1, "an answered request was sent all the same; its client tries again"


async def test_drain_waits_for_what_is_in_flight() -> None:
    async with collecting() as (collector, outlet, _):
        answer = collector.post({0: group(b"a")}, 0)
        await outlet.next(0)
        draining = asyncio.create_task(collector.drain())
        await asyncio.sleep(0.02)
        assert not draining.done()
        outlet.flights[0][2].set_result(None)
        await draining
        assert await answer is Outcome.ACKNOWLEDGED


async def test_an_empty_request_is_acknowledged_at_once() -> None:
    async with collecting() as (collector, _, budget):
        assert budget.take(5)
        assert await collector.post({}, 5) is Outcome.ACKNOWLEDGED
        assert budget.used == 0


async def test_a_bug_in_a_flight_ends_the_collector() -> None:
    """A task that dies unseen would leave its partition closed for ever."""
    outlet = HeldOutlet()
    collector = Collector(outlet, 1, Budget(1_000), 5.0, Health())
    running = asyncio.create_task(collector.run())
    await asyncio.sleep(0)
    collector.post({0: group(b"a")}, 0)
    (await outlet.next(0))[2].set_exception(KeyError("bug"))
    with pytest.raises(KeyError):
        async with asyncio.timeout(5):
            await running
