"""How the events of many requests become few batches: one in flight per partition, the rest gathers.

A partition with nothing in flight sends at once; what arrives meanwhile goes together in the next batch.
A request is answered when every partition it touches was acknowledged, or one was not, or its time is up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum, auto

from services.ingest.gateway.broker import Outlet
from services.ingest.gateway.budget import Budget
from shared.kafka.sender import Record, SendFailed
from shared.process.clock import monotonic
from shared.process.http import Health

_FLIGHT_RECORDS = 4_000
_SWEEP_SECONDS = 0.1
_ANSWER_SECONDS = 0.05
"""What the last answers need to reach their sockets."""


class Outcome(Enum):
    ACKNOWLEDGED = auto()
    FAILED = auto()
    LATE = auto()


class _Post:
    """One request on its way. Its bytes are given back only once no partition holds them any more."""

    __slots__ = ("answer", "deadline", "failed", "left", "size")

    def __init__(self, answer: asyncio.Future[Outcome], left: int, size: int, deadline: float) -> None:
        self.answer, self.left, self.size, self.deadline, self.failed = (
            answer,
            left,
            size,
            deadline,
            False,
        )


class _Lane:
    __slots__ = ("flying", "partition", "waiting")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.waiting: deque[tuple[_Post, list[Record]]] = deque()
        self.flying = False


class Collector:
    """`post` hands in one request's records; `run` answers those whose time is up."""

    def __init__(
        self,
        outlet: Outlet,
        shards: int,
        budget: Budget,
        deadline_seconds: float,
        health: Health,
    ) -> None:
        self._outlet, self._budget, self._deadline, self._health = (
            outlet,
            budget,
            deadline_seconds,
            health,
        )
        self.closing = False
        self._lanes = [_Lane(p) for p in range(shards)]
        self._posts: deque[_Post] = deque()
        self._flights: set[asyncio.Task[None]] = set()
        self._bug: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # asking for it costs a system call

    def _bind(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        return self._loop

    def post(self, groups: dict[int, list[Record]], size: int) -> asyncio.Future[Outcome]:
        """Send every group to its partition. `size` bytes were taken from the budget; they are given back here."""
        loop = self._loop or self._bind()
        answer: asyncio.Future[Outcome] = loop.create_future()
        post = _Post(answer, len(groups), size, monotonic() + self._deadline)
        if not groups:
            self._budget.give(size)
            answer.set_result(Outcome.ACKNOWLEDGED)
            return answer
        self._posts.append(post)
        for partition, records in groups.items():
            lane = self._lanes[partition]
            lane.waiting.append((post, records))
            if not lane.flying:
                lane.flying = True
                flight = loop.create_task(self._fly(lane))
                self._flights.add(flight)
                flight.add_done_callback(self._landed)
        return answer

    async def run(self) -> None:
        """Ends only by the exception of a bug in a flight."""
        self._bug = asyncio.get_running_loop().create_future()
        while True:
            self._health.beat("collector", 30)
            await asyncio.wait({self._bug}, timeout=_SWEEP_SECONDS)
            if self._bug.done():
                self._bug.result()
            self._sweep(monotonic())

    async def drain(self) -> None:
        """Take nothing more, and wait until every flight has landed and its requests are answered."""
        self.closing = True
        while self._flights:
            await asyncio.wait(set(self._flights), timeout=_SWEEP_SECONDS)
            self._sweep(monotonic())
        await asyncio.sleep(_ANSWER_SECONDS)

    def _sweep(self, now: float) -> None:
        # Deadlines lie in the order of arrival.
        while self._posts and (self._posts[0].answer.done() or self._posts[0].deadline <= now):
            post = self._posts.popleft()
            if not post.answer.done():
                post.answer.set_result(Outcome.LATE)
                self._outlet.suspect()

    async def _fly(self, lane: _Lane) -> None:
        try:
            while lane.waiting:
                posts, records = self._gather(lane)
                if records:
                    try:
                        await self._outlet.send(lane.partition, records)
                    except SendFailed:
                        for post in posts:
                            post.failed = True
                        self._outlet.suspect()
                for post in posts:
                    self._settle(post)
        finally:
            lane.flying = False

    def _gather(self, lane: _Lane) -> tuple[list[_Post], list[Record]]:
        """What goes next; requests that were answered already are dropped, for their client tries again."""
        posts: list[_Post] = []
        records: list[Record] = []
        while lane.waiting and len(records) < _FLIGHT_RECORDS:
            post, group = lane.waiting.popleft()
            posts.append(post)
            if not post.answer.done():
                if not records and not lane.waiting:
                    return posts, group
                records.extend(group)
        return posts, records

    def _settle(self, post: _Post) -> None:
        post.left -= 1
        if post.left == 0:
            self._budget.give(post.size)
        if post.answer.done():
            return
        if post.failed:
            post.answer.set_result(Outcome.FAILED)
        elif post.left == 0:
            post.answer.set_result(Outcome.ACKNOWLEDGED)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        if not flight.cancelled() and (error := flight.exception()) and self._bug and not self._bug.done():
            self._bug.set_exception(error)
