"""Where the demo's weather comes from: a recorded national feed moved to now, or an alert made by hand."""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from typing import Any

from services.local.program import LocalError
from services.notifier.context.nws import shift
from shared.contracts.identifiers import fresh_id
from shared.gazetteer import Gazetteer, Place
from shared.process.clock import iso

FEED = "feeds/nws-2025-12-15.json.gz"
EXTREME = ("tornado warning", "hurricane warning", "extreme wind warning", "tsunami warning", "flash flood emergency")


def feed(now_ms: int, run: int = 0) -> dict[str, Any]:
    """The recorded feed as if it had been fetched now.

    In a home's later runs it has other alert ids, as a feed of another day would: an alert is told once.
    """
    recorded = json.loads(gzip.decompress(files("services.demo").joinpath(FEED).read_bytes()))
    moved = shift(recorded, now_ms)
    if run:
        for feature in moved["features"]:
            properties = feature["properties"]
            properties["id"] += f".{run}"
            for reference in properties["references"]:
                reference["identifier"] += f".{run}"
    return moved


def find_city(text: str, gazetteer: Gazetteer) -> Place:
    """The city a person means; LocalError with what they may have meant when there is none."""
    found = gazetteer.get(gazetteer.normalise(text) or 0)
    if found is None:
        like = " or ".join(named(place) for place in gazetteer.spelled_like(text))
        raise LocalError(f"no city {text!r} is known; " + (f"{like}?" if like else "name it as in: Dallas, TX"))
    return found


def named(place: Place) -> str:
    return f"{place.name}, {place.state}" if place.state else place.name


def alert(event: str, city: Place, now_ms: int) -> dict[str, Any]:
    """An alert for one city, for an hour, in the form of `POST /v1/context`."""
    name = event.strip().title()
    return {
        "id": fresh_id("demo-"),
        "kind": "alert",
        "areas": [{"city_id": str(city.city_id)}],
        "severity": "Extreme" if name.lower() in EXTREME else "Severe",
        "starts_at": iso(now_ms),
        "ends_at": iso(now_ms + 3_600_000),
        "data": {"event": name, "headline": f"{name} for {named(city)} for the next hour", "urgency": "Immediate"},
    }
