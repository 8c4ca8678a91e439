"""Which events are told to those who wait for them, and what of each."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from services.segmenter.domain.state import Change
from shared.contracts.events import Accepted
from shared.contracts.rules import EventTrigger, Rules

MINUTE_MS = 60_000


class Awaited(NamedTuple):
    """How long after it occurred an event can still cause or call off anything; the properties that are looked at."""

    horizon_ms: int
    properties: frozenset[str]


def awaited(rules: Rules) -> dict[str, Awaited]:
    """By event name, for events that set a campaign going or call one off. A template is taken to name a property whose
    name it contains."""
    horizons: defaultdict[str, int] = defaultdict(int)
    properties: defaultdict[str, set[str]] = defaultdict(set)
    for campaign in rules.campaigns:
        trigger = campaign.trigger
        if not isinstance(trigger, EventTrigger):
            continue
        texts = " ".join(text for one in campaign.templates.values() for text in (one.title, one.body))
        same = set(trigger.same) - {"city"}
        for name in trigger.event:
            listed = rules.intake.properties.get(name, ())
            properties[name] |= trigger.where.keys() | same | {one for one in listed if one in texts}
        for name in trigger.unless:
            properties[name] |= same
        horizon = trigger.delay_minutes * MINUTE_MS + campaign.freshness_seconds * 1000
        for name in (*trigger.event, *trigger.unless):
            horizons[name] = max(horizons[name], horizon)
    return {name: Awaited(horizon, frozenset(properties[name])) for name, horizon in horizons.items()}


def moment_of(event: Accepted, told: Awaited) -> list[Change]:
    """The event as the feed tells it; nothing of history, which is stale for every campaign.

    Of the user it says nothing: whoever reads the feed in order knows them as the event left them."""
    if event.received_at - event.occurred_at > told.horizon_ms:
        return []
    payload: dict[str, object] = {
        "event": event.name,
        "mode": event.mode,
        "properties": {
            name: value
            for name, value in event.properties.items()
            if name in told.properties and not isinstance(value, dict)
        },
    }
    if event.city_id is not None:
        payload["city_id"] = event.city_id
    return [Change("moment", payload, event.occurred_at, "event", event.message_id)]
