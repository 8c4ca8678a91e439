"""The demo's forecasts: made up, alike for the same seed and day, and said to be made up wherever they are shown."""

from __future__ import annotations

import random  # noqa: TID251  seeded: the same seed makes the same weather
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from services.demo.phones import Person
from services.demo.watch import Watch, until
from shared.contracts.identifiers import fresh_id
from shared.gazetteer import Place
from shared.process.clock import iso

HOLDS_MS = 24 * 3_600_000
MOST_ITEMS = 5_000
SKIES = {
    "Sunny": (0, 10), "A few clouds": (0, 20), "Cloudy": (10, 40), "Fog, then sun": (0, 20), "Showers": (50, 90),
    "Thunderstorms": (60, 90), "Windy": (10, 40),
}  # fmt: skip
_SEASON = (-1.0, -0.9, -0.4, 0.1, 0.5, 0.9, 1.0, 0.9, 0.6, 0.0, -0.5, -0.9)
"""How far into the summer each month is, in the northern half of the world."""


def forecast(place: Place, seed: int, now_ms: int) -> dict[str, Any]:
    """A forecast for a city from now for a day, in the form of `POST /v1/context`."""
    moment = datetime.fromtimestamp(now_ms / 1000, UTC)
    draw = random.Random(f"forecast:{seed}:{place.city_id}:{moment:%Y-%m-%d}")  # noqa: S311
    north = min(abs(place.lat), 70.0)
    mean = 84 - 0.7 * max(0.0, north - 20) + 0.45 * north * _SEASON[moment.month - 1] * (1 if place.lat >= 0 else -1)
    high = round(mean + draw.uniform(-6, 10))
    sky = draw.choice(list(SKIES))
    return {
        "id": fresh_id("demo-"),
        "kind": "forecast",
        "areas": [{"city_id": str(place.city_id)}],
        "starts_at": iso(now_ms),
        "ends_at": iso(now_ms + HOLDS_MS),
        "data": {
            "summary": f"{sky} (made up)",
            "high": high,
            "low": high - draw.randint(9, 22),
            "unit": "F",
            "precipitation_percent": draw.randint(*SKIES[sky]),
        },
    }


def tells_of_forecasts(told: dict[str, Any]) -> bool:
    """Whether a campaign, as `GET /v1/campaigns` shows it, waits for the clock and tells of forecasts."""
    trigger: dict[str, Any] = told["trigger"]
    return (trigger["type"], trigger.get("context")) == ("schedule", "forecast")


async def good_morning(watch: Watch, everyone: Iterable[Person], seed: int, now_ms: int, seconds: float) -> str:
    """Post a forecast for everyone's city and set the campaign going, as if it were its hour everywhere; what came of
    it in a sentence, empty where the pack has no such campaign."""
    campaigns = (await watch.ask("notifier", "/v1/campaigns"))["items"]
    chosen = next((campaign["id"] for campaign in campaigns if tells_of_forecasts(campaign)), None)
    if chosen is None:
        return ""
    places = {person.home.city_id: person.home for person in everyone if person.home is not None}
    items = [forecast(place, seed, now_ms) for place in places.values()]
    for start in range(0, len(items), MOST_ITEMS):
        body = {"kind": "forecast", "items": items[start : start + MOST_ITEMS]}
        await watch.tell("notifier", "/v1/context", msgspec.json.encode(body))
    await watch.tell("notifier", f"/v1/campaigns/{chosen}/trigger", b"{}", {"Idempotency-Key": fresh_id("demo-")})
    await until(watch.sent, seconds)
    runs = (await watch.ask("notifier", f"/v1/campaigns/{chosen}/runs?limit=1"))["items"]
    users = sum(run["members"] for run in runs)
    return f"{chosen}, as if it were its hour everywhere: made-up weather for {users:,} users in {len(items):,} cities"
