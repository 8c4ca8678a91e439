"""The load under which things are broken: seeded, with repeats, lateness, nonsense, consents, phones and cities."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.installation import Rig

CITIES = ["Dallas, TX", "New York, NY", "Chicago, IL", "Miami, FL", "Seattle, WA", "Denver, CO", "Boston, MA",
          "Phoenix, AZ", "Atlanta, GA", "Portland, OR", "Houston, TX", "Austin, TX"]  # fmt: skip
DAY = 86_400.0
KINDS = {
    "Application Opened": 30,
    "Screen Viewed": 25,
    "City Searched": 10,
    "City Added": 5,
    "City Removed": 2,
    "Default City Set": 4,
    "Consent Preference Updated": 1,
    "Application Uninstalled": 1,
    "Application Backgrounded": 5,
    "Push Notification Received": 2,
    "Something Else": 2,
    "identify": 4,
    "alias": 1,
    "screen": 3,
}
"""How often each comes. Who signs in does so under one of three ids they had before; some mix others' up with theirs."""


def instant(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03}Z"


class Traffic:
    """Events of `users` users. The same seed gives the same events, their times aside."""

    def __init__(self, seed: int, users: int = 150, prefix: str = "u", late: bool = True) -> None:
        self._random = random.Random(seed)
        self._users = [f"{prefix}{seed}-{n}" for n in range(users)]
        self._seed = seed
        self._late = late
        self._count = 0
        self._sent: list[dict[str, Any]] = []
        self.posted = 0

    def event(self, now: float) -> dict[str, Any]:
        """The next event; some are repeats of recent ones, some nobody can use."""
        roll = self._random
        if self._sent and roll.random() < 0.06:
            return roll.choice(self._sent[-100:])
        self._count += 1
        user = roll.choice(self._users)
        kind = roll.choices(list(KINDS), list(KINDS.values()))[0]
        event: dict[str, Any] = {"type": "track", "event": kind, "messageId": f"{self._seed}-{self._count}"}
        if roll.random() < 0.2:
            event["anonymousId"] = f"{user}~{roll.randrange(3)}"
        else:
            event["userId" if roll.random() < 0.5 else "anonymousId"] = user
        event["timestamp"] = instant(now - (roll.random() ** 3 * 29 * DAY if self._late and roll.random() < 0.3 else 0))
        event["properties"] = self._properties(kind)
        if kind in ("identify", "alias", "screen"):
            event["type"] = kind
            del event["event"]
        if kind in ("identify", "alias") and roll.random() < 0.7:
            other = f"{user}~{roll.randrange(3)}" if roll.random() < 0.85 else roll.choice(self._users)
            event |= {"userId": user, "anonymousId" if kind == "identify" else "previousId": other}
        if roll.random() < 0.35:
            event["context"] = self._context(user)
        if roll.random() < 0.02:
            self._spoil(event)
        self._sent.append(event)
        return event

    def _properties(self, kind: str) -> dict[str, Any]:
        roll = self._random
        if "City" in kind:
            return {"city": roll.choice(CITIES)} if roll.random() < 0.97 else {"city": "Nowhere At All"}
        if kind == "Consent Preference Updated":
            purposes = ("location", "search_history", "push")
            return {"categories": {p: roll.random() < 0.6 for p in purposes if roll.random() < 0.7}}
        return {"name": f"screen {roll.randrange(5)}", "left out": 1}

    def _context(self, user: str) -> dict[str, Any]:
        roll = self._random
        number = roll.randrange(3) if roll.random() < 0.1 else 0
        return {
            "device": {"id": f"{user}-d{number}", "type": "android", "token": f"token-{user}-{number}"},
            "locale": roll.choice(["en-US", "es-US"]) if roll.random() < 0.1 else "en-US",
            "timezone": "America/Chicago",
            "app": {"version": f"1.{roll.randrange(3)}"},
        }

    def _spoil(self, event: dict[str, Any]) -> None:
        match self._random.randrange(5):
            case 0:
                event.pop("userId", None)
                event.pop("anonymousId", None)
            case 1:
                event["timestamp"] = "the day before yesterday"
            case 2:
                event["properties"] = {"name": "someone@example.org"}
            case 3:
                event["timestamp"] = "2001-01-01T00:00:00Z"
            case 4:
                event["type"] = "telegram"

    async def run(
        self, rig: Rig, seconds: float, rate: float = 400.0, times: int = 1, now: float | None = None
    ) -> None:
        """Post for a while, each batch `times` times."""
        began, batch = time.monotonic(), max(1, int(rate / 10))
        while (elapsed := time.monotonic() - began) < seconds:
            moment = time.time() if now is None else now + elapsed
            events = [self.event(moment) for _ in range(batch)]
            for _ in range(times):
                await rig.post(events)
            self.posted += len(events) * times
            await asyncio.sleep(max(0.0, began + self.posted / times / rate - time.monotonic()))

    async def erase(self, rig: Rig, pause: float = 1.5) -> None:
        """Have users erased for ever, one after the other; events of theirs go on being posted."""
        for user in self._users:
            await asyncio.sleep(pause)
            await rig.erase(user)

    @asynccontextmanager
    async def during(
        self, rig: Rig, rate: float = 200.0, storms: Storms | None = None, erasing: bool = True
    ) -> AsyncIterator[None]:
        """Post while the block runs, alerts too, and have a user erased now and then; a load that fails ends it."""
        async with asyncio.TaskGroup() as group:
            loads = [group.create_task(self.run(rig, 1e9, rate))]
            if erasing:
                loads.append(group.create_task(self.erase(rig)))
            if storms is not None:
                loads.append(group.create_task(storms.run(rig)))
            try:
                yield
            finally:
                for load in loads:
                    load.cancel()


class Storms:
    """Alerts for the cities of `Traffic`. Some replace an earlier one, some two of them, so that chains are joined."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._seed = seed
        self._count = 0

    def alert(self, now: float) -> dict[str, Any]:
        """The next alert, in the form of `POST /v1/context`."""
        roll = self._random
        earlier = [f"storm-{self._seed}-{number}" for number in range(max(0, self._count - 8), self._count)]
        replaces = roll.sample(earlier, min(len(earlier), roll.choice([0, 0, 1, 2])))
        self._count += 1
        return {
            "id": f"storm-{self._seed}-{self._count - 1}",
            "kind": "alert",
            "areas": [{"city": city} for city in roll.sample(CITIES, roll.randint(1, 3))],
            "severity": roll.choice(["Extreme", "Severe", "Severe", "Minor"]),
            "starts_at": instant(now),
            "ends_at": instant(now + 3600),
            "replaces": replaces,
            "data": {"event": "Tornado Warning"},
        }

    async def run(self, rig: Rig, pause: float = 0.4) -> None:
        """Post alerts for ever."""
        while True:
            await rig.alert(self.alert(time.time()))
            await asyncio.sleep(pause)
