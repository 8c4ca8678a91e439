"""A day of twenty thousand phones at two hundred times its speed: who does what when, and what must be true of it.

The checks look at what reached the phones and at the ledger of messages, and know nothing of how either came to be.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from services.demo import habits
from services.demo.drive import Gateway
from services.demo.habits import Post, Visit
from services.demo.phones import Person
from shared.process.clock import Clock, parse_instant

MINUTE, HOUR = 60_000, 3_600_000
RUN = 1
"""The demo's number of a run: part of every message id."""


class Stroke(NamedTuple):
    """Something a phone posts at a moment of the day."""

    at: int
    number: int
    make: Callable[[int], Post | None]


def strokes(seed: int, everyone: Sequence[Person], begin: int, end: int) -> Iterator[Stroke]:
    """What everyone does between two instants, in order: they look by the clock on their own wall, most in the morning
    and the evening, a few at night; whoever is new installs the app at some hour of the day."""
    draw = random.Random(f"day:{seed}")
    found: list[Stroke] = []
    active = [p for p in everyone if p.opens_today and p.home is not None]
    for person in everyone:
        if not person.opens_today and person.habit != "unopened":
            continue
        zone = ZoneInfo(person.timezone)
        moments = sorted(_moments(draw, zone, begin, end, 1 if person.habit == "returning" else draw.randint(1, 3)))
        for nth, at in enumerate(moments):
            number = len(found)
            if nth == 0:
                found.append(Stroke(at, number, partial(habits.arrival, person, RUN)))
                continue
            elsewhere = draw.choice(active).home if person.home is not None and draw.random() < 0.3 else None
            visit = Visit(person, number, draw.randint(1, 3), elsewhere, 0, 2 if draw.random() < 0.02 else 1)
            found.append(Stroke(at, number, partial(_look, visit)))
    yield from sorted(found)


def _look(visit: Visit, now_ms: int) -> Post:
    return visit.post(RUN, now_ms, visit.events)


def _moments(draw: random.Random, zone: ZoneInfo, begin: int, end: int, count: int) -> Iterator[int]:
    first = datetime.fromtimestamp(begin / 1000, UTC).astimezone(zone).date()
    for _ in range(count):
        hour = draw.choices(range(24), (2, 1, 1, 1, 1, 3, 8, 12, 10, 7, 5, 5, 7, 6, 5, 5, 6, 8, 9, 9, 8, 7, 6, 4))[0]
        wall = time(hour, draw.randrange(60), draw.randrange(60))
        days = [first + timedelta(days=n) for n in range(3)]
        inside = [
            at for day in days if begin <= (at := round(datetime.combine(day, wall, zone).timestamp() * 1000)) < end
        ]
        if inside:
            yield draw.choice(inside)


async def all_at_once(gateway: Gateway, posts: Iterable[Post], at_once: int = 12) -> None:
    waiting = iter(posts)

    async def work() -> None:
        for post in waiting:
            await gateway.post(post)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())


async def live(gateway: Gateway, clock: Clock, plan: Iterable[Stroke], rate: float, at_once: int = 24) -> int:
    """Post everything when its moment has come; how late the latest post began, in milliseconds of the day."""
    slots, late = asyncio.Semaphore(at_once), 0

    async def one(stroke: Stroke) -> None:
        try:
            post = stroke.make(clock.now_ms())
            if post is not None:
                await gateway.post(post)
        finally:
            slots.release()

    async with asyncio.TaskGroup() as group:
        for stroke in plan:
            while (wait := stroke.at - clock.now_ms()) > 0:
                await asyncio.sleep(min(1.0, wait / rate / 1000))
            await slots.acquire()
            late = max(late, clock.now_ms() - stroke.at)
            group.create_task(one(stroke))
    return late


@dataclass(frozen=True)
class Limits:
    """What was promised; spans in milliseconds."""

    quiet: tuple[str, str]
    caps: tuple[tuple[int, int, str], ...]
    """(most, within, category); an empty category binds all."""
    gap: int
    safety: frozenset[str]
    category: Mapping[str, str]
    """Of each campaign."""


class Shown(NamedTuple):
    """A push as something saw it: at which moment of the day, whose, of which campaign."""

    at: int
    user_id: str
    campaign: str
    message_id: str


def arrived(pushes: Iterable[Mapping[str, Any]], users: Mapping[str, str], to_day: Callable[[int], int]) -> list[Shown]:
    """What the phones received. `users`: by token."""
    return sorted(
        Shown(
            to_day(parse_instant(p["received_at"])), users[p["token"]], p["data"]["campaign"], p["data"]["message_id"]
        )
        for p in pushes
        if p["token"] in users
    )


def violations(shown: Sequence[Shown], zones: Mapping[str, ZoneInfo], limits: Limits, lag: int) -> Iterator[str]:
    """Everything that breaks a promise. `lag`: how much later than it was let go a push may have been seen."""
    times = Counter(s.message_id for s in shown)
    yield from (f"message {one} came {n} times" for one, n in times.items() if n > 1)
    begin, end = (time.fromisoformat(text) for text in limits.quiet)
    by_user: defaultdict[str, list[Shown]] = defaultdict(list)
    for one in shown:
        if one.campaign in limits.safety:
            continue
        by_user[one.user_id].append(one)
        walls = [
            datetime.fromtimestamp(at / 1000, UTC).astimezone(zones[one.user_id]).time()
            for at in (one.at - lag, one.at)
        ]
        if all(wall >= begin or wall < end for wall in walls):
            yield f"{one.campaign} reached {one.user_id} at {walls[1]:%H:%M}, in quiet hours"
    for user_id, several in by_user.items():
        for before, after in pairwise(several):
            if after.at - before.at < limits.gap - lag:
                yield f"{user_id} got {before.campaign} and {after.campaign} within {after.at - before.at} ms"
        for most, within, category in limits.caps:
            bound = [one.at for one in several if not category or limits.category[one.campaign] == category]
            for first, last in zip(bound, bound[most:], strict=False):
                if last - first < within - lag:
                    yield f"{user_id} got more than {most} pushes of {category or 'any kind'} within {last - first} ms"
