"""How the phones reach the product: their posts to the gateway, and the pushes they find in the sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import msgspec

from services.demo import cdnow, habits, phones, shopping
from services.demo.habits import Post, Visit
from services.demo.phones import Person
from services.local.program import LocalError
from shared.process.clock import Clock, monotonic

log = logging.getLogger("perennial.demo")

AT_ONCE = 12
"""Phones that post at the same time."""
PATIENCE_SECONDS = 60.0
"""How long a post is tried again while the gateway is away or overloaded."""
POLL_SECONDS = 0.15


class Gateway:
    """The gateway as a phone sees it: it answers 200, or the post is kept and sent again."""

    def __init__(self, session: aiohttp.ClientSession, url: str, write_key: str) -> None:
        self._session, self._url = session, url
        self._headers = {
            "Authorization": aiohttp.encode_basic_auth(write_key, ""),
            "Content-Type": "application/json",
        }

    async def post(self, post: Post) -> None:
        body = msgspec.json.encode(post.body)
        for _ in range(post.copies):
            await self._deliver(post.path, body)

    async def _deliver(self, path: str, body: bytes) -> None:
        deadline = monotonic() + PATIENCE_SECONDS
        while True:
            why, wait = "", 1.0
            try:
                async with self._session.post(self._url + path, data=body, headers=self._headers) as answer:
                    if answer.status == 200:
                        return
                    why = f"{answer.status} {(await answer.text())[:200]}"
                    if answer.status not in (408, 429, 500, 503):
                        raise LocalError(f"the gateway refuses a phone's post: {why}")
                    with contextlib.suppress(ValueError):
                        wait = float(answer.headers.get("Retry-After", "1"))
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                why = f"{type(error).__name__}: {error}"
            if monotonic() > deadline:
                raise LocalError(f"the gateway takes nothing for {PATIENCE_SECONDS:.0f} s: {why}")
            await asyncio.sleep(wait)


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=AT_ONCE * 2, keepalive_timeout=20)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30)) as opened:
        yield opened


class Pace:
    """Lets so many events a second through, evenly; what is late is made up for."""

    def __init__(self, rate: float) -> None:
        self._rate, self._next = rate, monotonic()

    async def take(self, events: int) -> None:
        wait = self._next - monotonic()
        self._next += events / self._rate
        if wait > 0:
            await asyncio.sleep(wait)


async def _each(jobs: Iterable[Callable[[], Awaitable[None]]], at_once: int = AT_ONCE) -> None:
    """Run the jobs, so many at a time, begun in order; the first failure ends all."""
    waiting: Iterator[Callable[[], Awaitable[None]]] = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await job()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())
    except* LocalError as failures:
        raise failures.exceptions[0] from None


class Phones:
    """Everyone's phones, posting."""

    def __init__(
        self, gateway: Gateway, clock: Clock, everyone: list[Person], seed: int, run: int, shop: bool = False
    ) -> None:
        self.everyone, self._gateway, self._clock, self._seed, self._run = everyone, gateway, clock, seed, run
        self._habits = shopping if shop else habits
        self._visits = self._habits.visits(seed, run, everyone)

    async def set_up(self, with_history: bool) -> None:
        """Each phone's first posts: what is known from before, then today's, in this order.

        Those who are new come first, as only to them something is said at once.
        """

        def begin(person: Person) -> Callable[[], Awaitable[None]]:
            async def posts() -> None:
                if with_history and (known := self._habits.history(person, self._clock.now_ms())) is not None:
                    await self._gateway.post(known)
                if (first := self._habits.arrival(person, self._run, self._clock.now_ms())) is not None:
                    await self._gateway.post(first)

            return posts

        await _each(begin(person) for person in sorted(self.everyone, key=lambda person: bool(person.days)))

    async def remember(self) -> None:
        """Import a real shop's orders of earlier years."""
        await _each(partial(self._gateway.post, post) for post in cdnow.history(self._clock.now_ms()))

    async def use(self, rate: float, events: int) -> None:
        """`events` events of people who look at the weather, at `rate` a second."""
        pace = Pace(rate)

        def look(visit: Visit, most: int) -> Callable[[], Awaitable[None]]:
            async def posts() -> None:
                await pace.take(most * visit.copies)
                await self._gateway.post(visit.post(self._run, self._clock.now_ms(), most))

            return posts

        await _each(look(visit, most) for visit, most in habits.budgeted(self._visits, events))

    async def come_back(self) -> None:
        """Some of those who were silent look again. What they were sent by then is already sent."""
        await _each(
            partial(self._gateway.post, habits.comeback(person, self._run, self._clock.now_ms()))
            for person in self.everyone
            if person.comes_back
        )

    async def leave(self) -> list[str]:
        """Some delete the app; the tokens that died with it."""
        gone = [person for person in self.everyone if person.leaves]
        await _each(
            partial(self._gateway.post, habits.farewell(person, self._run, self._clock.now_ms())) for person in gone
        )
        return [person.token for person in gone if person.token]

    async def tap(self, person: Person, message_id: str) -> None:
        await self._gateway.post(habits.tap(person, message_id, self._clock.now_ms()))


class Inbox:
    """What arrives in the sandbox; some of it is tapped."""

    def __init__(self, http: aiohttp.ClientSession, url: str, users: Phones, seed: int, began: float) -> None:
        self._session, self._url, self._phones, self._seed, self._began = http, url, users, seed, began
        self._by_token = {person.token: person for person in users.everyone if person.token}
        self._seen: set[str] = set()
        self._nth: Counter[tuple[str, str]] = Counter()
        self._taps: set[asyncio.Task[None]] = set()
        self._cursor = 0
        self.first_after: float | None = None
        self.on_push: Callable[[dict[str, Any]], None] | None = None

    async def count(self) -> dict[str, Any]:
        """The sandbox's own count."""
        found: dict[str, Any] = await self._get("/pushes/count")
        return found

    async def bury(self, tokens: Iterable[str]) -> None:
        """Have the sandbox answer pushes to these tokens as FCM does once the app is gone."""

        async def bury(token: str) -> None:
            async with self._session.delete(f"{self._url}/devices/{token}") as answer:
                answer.raise_for_status()

        await _each(partial(bury, token) for token in tokens)

    async def quiet(self) -> bool:
        """Whether everything that arrived was looked at, and every tap posted."""
        return not self._taps and (await self.count())["last"] <= self._cursor

    def someone(self) -> str | None:
        """A user whose road is worth following: the one who was told most."""
        told: Counter[str] = Counter()
        for (user_id, _), number in self._nth.items():
            told[user_id] += number
        return max(told, key=lambda user_id: (told[user_id], user_id), default=None)

    async def run(self) -> None:
        """Look for new pushes for ever; fails when a tap cannot be posted."""
        try:
            while True:
                for task in [task for task in self._taps if task.done()]:
                    self._taps.discard(task)
                    task.result()
                # the sandbox may be starting again
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
                    await self._look()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            for task in self._taps:
                task.cancel()

    async def _look(self) -> None:
        found = await self._get(f"/pushes?since={self._cursor}&limit=5000")
        for push in found["items"]:
            self._take(push)
            self._cursor = push["n"]

    def _take(self, push: dict[str, Any]) -> None:
        if self.first_after is None:
            self.first_after = monotonic() - self._began
        if self.on_push is not None:
            self.on_push(push)
        message_id, campaign = push["data"].get("message_id", ""), push["data"].get("campaign", "")
        person = self._by_token.get(push["token"])
        if person is None or not message_id or message_id in self._seen:
            return
        self._seen.add(message_id)
        key = (person.user_id, campaign)
        self._nth[key] += 1
        if phones.taps(self._seed, *key, self._nth[key]):
            self._taps.add(asyncio.create_task(self._phones.tap(person, message_id), name="tap"))

    async def _get(self, path: str) -> Any:
        async with self._session.get(self._url + path) as answer:
            answer.raise_for_status()
            return await answer.json()
