"""What the phones of the bench do: who acts, and what an event says, as posted and as decided.

Repeatable: the same seed gives the same users and events, times and ids aside.
"""

from __future__ import annotations

import random  # noqa: TID251  seeded: the same seed gives the same traffic
from collections.abc import Callable
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import msgspec

from shared.contracts.events import Accepted, Context, Device
from shared.process.clock import iso

Spread = Literal["zipf", "uniform"]
Shape = Literal["phones", "mixed", "singles", "newcomers"]

KINDS = {"Application Opened": 40, "Screen Viewed": 40, "City Searched": 12, "City Added": 4, "Default City Set": 4}
CITIES = ("New York, NY", "Los Angeles, CA", "Chicago, IL", "Houston, TX", "Phoenix, AZ", "Philadelphia, PA",
          "San Antonio, TX", "San Diego, CA", "Dallas, TX", "Austin, TX", "Fort Worth, TX", "Columbus, OH",
          "Charlotte, NC", "Seattle, WA", "Denver, CO", "Boston, MA", "Portland, OR", "Memphis, TN", "Baltimore, MD",
          "Miami, FL")  # fmt: skip
CITIES_EACH = 4
"""How many of them one person ever names."""
SOURCE = "bench"
_encode = msgspec.json.Encoder().encode


class Act(NamedTuple):
    """One thing a person does. `city` is an index of `CITIES`, -1 where the event names none."""

    user_id: str
    message_id: str
    name: str
    city: int


class Crowd:
    """`count` people who act by turns: evenly, or as often as Zipf's law has it (the n-th 1/n times the first)."""

    def __init__(self, count: int, spread: Spread = "zipf", seed: int = 1, tag: str = "u") -> None:
        self._draw = random.Random(seed)  # noqa: S311  nothing here is a secret
        self._count, self._tag, self._seed, self._acts = count, tag, seed, 0
        self._weights = list(accumulate(1 / rank for rank in range(1, count + 1))) if spread == "zipf" else None

    def users(self, many: int) -> list[str]:
        if self._weights is None:
            drawn = [self._draw.randrange(self._count) for _ in range(many)]
        else:
            drawn = self._draw.choices(range(self._count), cum_weights=self._weights, k=many)
        return [f"{self._tag}-{n:07d}" for n in drawn]

    def everyone(self) -> list[str]:
        return [f"{self._tag}-{n:07d}" for n in range(self._count)]

    def acts(self, users: list[str], name: str = "") -> list[Act]:
        """One act of each; of the kind named, or of any."""
        if name:
            names = [name] * len(users)
        else:
            names = self._draw.choices(list(KINDS), weights=list(KINDS.values()), k=len(users))
        cities = self._draw.choices(range(CITIES_EACH), k=len(users))
        found = []
        for user, kind, city in zip(users, names, cities, strict=True):
            self._acts += 1
            place = (int(user[-7:]) + city) % len(CITIES) if "City" in kind else -1
            found.append(Act(user, f"{user}-{self._seed}-{self._acts:x}", kind, place))
        return found


def event(act: Act, at_ms: int) -> dict[str, Any]:
    """The event as a phone posts it: some 330 bytes of JSON."""
    return {
        "type": "track",
        "userId": act.user_id,
        "event": act.name,
        "messageId": act.message_id,
        "timestamp": iso(at_ms),
        "properties": {"city": CITIES[act.city]} if act.city >= 0 else {"name": "Today", "version": "4.2.0"},
        "context": {
            "device": {"id": f"phone-{act.user_id}", "type": "android", "token": f"token-{act.user_id}"},
            "locale": "en-US",
            "timezone": "America/Chicago",
            "app": {"version": "4.2.0"},
        },
    }


def posts(shape: Shape, size: int, many: int, crowd: Crowd, at_ms: int) -> list[bytes]:
    """Bodies of `many` posts of `size` events: of one user each (`phones`), of any (`mixed`), single ones without
    envelope (`singles`); `newcomers` are single first openings of users nobody has seen."""
    match shape:
        case "phones":
            several = [[user] * size for user in crowd.users(many)]
        case "mixed":
            several = [crowd.users(size) for _ in range(many)]
        case "singles":
            return [_encode(event(act, at_ms)) for act in crowd.acts(crowd.users(many))]
        case "newcomers":
            return [_encode(event(act, at_ms)) for act in crowd.acts(crowd.everyone()[:many], "Application Opened")]
    return [_encode({"batch": [event(act, at_ms) for act in crowd.acts(users)]}) for users in several]


def decisions(
    acts: list[Act], city_ids: list[int], now_ms: int, rules: int, shard_of: Callable[[str], int], last: dict[int, int]
) -> dict[int, list[Accepted]]:
    """What ingest makes of these acts, by shard; `last` is the last raw offset decided in each, and goes on."""
    found: dict[int, list[Accepted]] = {}
    contexts: dict[str, Context] = {}
    for act in acts:
        shard, user = shard_of(act.user_id), act.user_id
        context = contexts.get(user)
        if context is None:
            device = Device(f"phone-{user}", "android", f"token-{user}")
            context = contexts[user] = Context(device, "en-US", "America/Chicago", "4.2.0")
        prev = last.get(shard, -1)
        last[shard] = prev + 1
        place, properties = (
            (None, {"name": "Today"}) if act.city < 0 else (city_ids[act.city], {"city": CITIES[act.city]})
        )
        found.setdefault(shard, []).append(
            Accepted(
                prev + 1, prev, b"\x00" * 8, rules, user, act.message_id, act.name, now_ms, now_ms, "live", SOURCE,
                place, properties, context,
            )
        )  # fmt: skip
    return found
