"""A day of thousands of phones at two hundred times its speed: how it is lived, and what must be true of it.

The checks look at what reached the phones and at the ledger of messages, and know nothing of how either came to be.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, time
from itertools import pairwise
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from services.demo.drive import Gateway
from services.demo.habits import Post
from shared.contracts.rules import Cap, Rules
from shared.process.clock import Clock, parse_instant
from tests.support.day_stories import HOUR, MINUTE, Stroke


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


def violations(shown: Sequence[Shown], zones: Mapping[str, ZoneInfo], rules: Rules, lag: int) -> Iterator[str]:
    """Everything that breaks a promise of the rules. `lag`: how much later than it was let go a push may have been
    seen."""
    times = Counter(s.message_id for s in shown)
    yield from (f"message {one} came {n} times" for one, n in times.items() if n > 1)
    campaigns = {campaign.id: campaign for campaign in rules.campaigns}
    begin, end = (time.fromisoformat(text) for text in (rules.limits.quiet_hours.from_, rules.limits.quiet_hours.to))
    by_user: defaultdict[str, list[Shown]] = defaultdict(list)
    for one in shown:
        campaign, zone = campaigns[one.campaign], zones[one.user_id]
        if campaign.safety:
            continue
        by_user[one.user_id].append(one)
        walls = [_wall(at, zone).time() for at in (one.at - lag, one.at)]
        if not campaign.any_hour and all(wall >= begin or wall < end for wall in walls):
            yield f"{one.campaign} reached {one.user_id} at {walls[1]:%H:%M}, in quiet hours"
    for user_id, several in by_user.items():
        for before, after in pairwise(several):
            if after.at - before.at < rules.limits.gap_minutes * MINUTE - lag:
                yield f"{user_id} got {before.campaign} and {after.campaign} within {after.at - before.at} ms"
        for cap in rules.limits.caps:
            bound = [s.at for s in several if not cap.category or campaigns[s.campaign].category == cap.category]
            if _exceeded(cap, bound, zones[user_id], lag):
                yield f"{user_id} got more than {cap}: {[s.campaign for s in several]}"


def _exceeded(cap: Cap, moments: Sequence[int], zone: ZoneInfo, lag: int) -> bool:
    if cap.window == "rolling":
        return any(
            last - first < cap.hours * HOUR - lag for first, last in zip(moments, moments[cap.most :], strict=False)
        )
    assert cap.window == "day", f"no day is long enough for a cap by {cap.window}"
    # one let go just before midnight may be seen after it: what is too much has to be so on either day
    return all(
        any(n > cap.most for n in Counter(_wall(at - late, zone).date() for at in moments).values())
        for late in (0, lag)
    )


def _wall(ms: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone(zone)


def table(ledger: Iterable[Mapping[str, Any]]) -> dict[str, Counter[str]]:
    """By campaign, how many messages came to each end."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for m in ledger:
        found[m["campaign"]][m["state"] if m["state"] != "suppressed" else f"suppressed {m['reason']}"] += 1
    return found
