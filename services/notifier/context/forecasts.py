"""What is a forecast, and for which cities does it hold how long? Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from services.notifier.context.reading import cities_in, read_choice, read_span, read_text, shown
from shared.gazetteer import Gazetteer

MAX_ITEMS = 5_000
"""Forecasts of one post."""
MAX_SUMMARY_CHARS = 500
_TEMPERATURE = 200.0


class Forecast(msgspec.Struct, frozen=True):
    """What holds for some cities from `starts_at` until `ends_at` (milliseconds). `facts`: what templates may say."""

    id: str
    starts_at: int
    ends_at: int
    city_ids: tuple[int, ...]
    facts: dict[str, Any]


def from_contract(body: Mapping[str, Any], gazetteer: Gazetteer) -> Forecast:
    """The forecast in a body of `POST /v1/context`:

    `{"id", "kind": "forecast", "areas": […] (as an alert's), "starts_at", "ends_at", "data": {"summary", "high"?,
    "low"?, "unit"?: "C" | "F" (needed with either), "precipitation_percent"?}}`. ValueError says in one sentence what
    is wrong.
    """
    extra = body.get("data")
    if not isinstance(extra, Mapping):
        raise ValueError("data must be an object with at least a summary")  # noqa: TRY004 - bad data is one kind of error
    starts_at, ends_at = read_span(body)
    cities = cities_in(body.get("areas"), gazetteer)
    high, low = _number(extra, "high", -_TEMPERATURE, _TEMPERATURE), _number(extra, "low", -_TEMPERATURE, _TEMPERATURE)
    unit = read_choice(extra, "unit", ("C", "F"), "") or None
    if unit is None and not (high is None and low is None):
        raise ValueError("data.unit must be C or F where there is a high or a low")
    facts = {
        "summary": read_text(extra, "data.summary", "summary", MAX_SUMMARY_CHARS),
        "high": high,
        "low": low,
        "unit": unit,
        "precipitation_percent": _number(extra, "precipitation_percent", 0, 100),
    }
    return Forecast(read_text(body, "id", "id", 512), starts_at, ends_at, cities, facts)


def several(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The forecasts of a body: itself, or its `items`, each without `kind`. ValueError when these are no objects."""
    items = body.get("items")
    if items is None:
        yield body
        return
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_ITEMS:
        raise ValueError(f"items must be a list of 1 to {MAX_ITEMS} forecasts")
    for number, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise ValueError(f"items[{number}] must be an object, not {shown(item)}")  # noqa: TRY004
        yield {**item, "kind": "forecast"}


def _number(data: Mapping[str, Any], key: str, least: float, most: float) -> float | None:
    """A number within bounds, whole where it is whole; None where it is missing or null."""
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"data.{key} must be a number, not {shown(value)}")
    if not least <= value <= most:
        raise ValueError(f"data.{key} must be {least:g} to {most:g}, not {shown(value)}")
    return round(value) if value == round(value) else round(value, 1)
