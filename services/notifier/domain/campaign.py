"""Which rows of the feed set a campaign going or call it off, what happened once, and what its templates may name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from shared.contracts.changes import BY_ERASURE
from shared.contracts.events import FeedRow
from shared.contracts.rules import (
    ActivityTrigger,
    AlertTrigger,
    EventTrigger,
    Rules,
    ScheduleTrigger,
    SegmentExitTrigger,
    SegmentTrigger,
    StageTrigger,
    Trigger,
    city_events,
)
from shared.gazetteer.places import Place

MINUTE_MS = 60_000

_USER: dict[str, bool] = {
    "user.stage": True,
    "user.activity": True,
    "user.locale": True,
    "user.timezone": True,
    "campaign.id": False,
    "campaign.title": False,
    "occurred_at": False,
}
_CHANGE: dict[str, bool] = {"change.from": True, "change.to": False}
_CITY: dict[str, bool] = {
    "city.name": False,
    "city.state": True,
    "city.country": True,
    "city.timezone": True,
    "city.theirs": False,
}
_ALERT: dict[str, bool] = {
    "alert.event": False,
    "alert.severity": False,
    "alert.headline": True,
    "alert.description": True,
    "alert.instruction": True,
    "alert.area": True,
    "alert.ends_at": True,
    "city.others": True,
}
_FORECAST: dict[str, bool] = {
    "forecast.summary": False,
    "forecast.high": True,
    "forecast.low": True,
    "forecast.unit": True,
    "forecast.precipitation_percent": True,
    "forecast.ends_at": False,
}
_SEGMENT: dict[str, bool] = {"segment.id": False, "segment.title": False}
_OF_PLACES = ("location", "search_history")


class Occurrence(msgspec.Struct, frozen=True):
    """What happened once, and so is worth one message to a user at most.

    `id` names it within the campaign and is the same however often it is replayed. `valid_until` is the
    instant after which the message would be false (None: never). `collapse` names what is shown on the
    phone: a later message with the same one replaces it (default: `id`). `began_at` is the same for every
    message of a chain of alerts, so that all lie in one month (default: `occurred_at`). `due_at`: when the campaign's
    delay is over, before which what agrees with it in `same` may call it off (0: there is no delay).
    """

    id: str
    occurred_at: int
    valid_until: int | None = None
    variables: dict[str, Any] = {}
    collapse: str = ""
    began_at: int = 0
    due_at: int = 0
    same: dict[str, Any] = {}

    @property
    def fresh_at(self) -> int:
        """From when on it grows old."""
        return self.due_at or self.occurred_at


def key_of(row: FeedRow) -> str:
    """Under which name campaigns look for such a row: its kind, or of a moment the event's name."""
    return _moment(row.payload["event"]) if row.kind == "moment" else row.kind


def beginning(trigger: Trigger) -> tuple[str, ...]:
    """Keys of the rows that may set a campaign going; alerts and the clock come from elsewhere."""
    match trigger:
        case EventTrigger():
            return tuple(_moment(name) for name in trigger.event)
        case AlertTrigger() | ScheduleTrigger():
            return ()
    return (str(trigger.__struct_config__.tag),)


def ending(trigger: Trigger) -> tuple[str, ...]:
    """Keys of the rows that may call it off while it waits or is held."""
    match trigger:
        case EventTrigger():
            return (*(_moment(name) for name in trigger.unless), "consent_set")
        case SegmentTrigger() if trigger.delay_minutes:
            return ("segment_exited",)
        case SegmentExitTrigger() if trigger.delay_minutes:
            return ("segment_entered",)
    return ()


def _moment(event: str) -> str:
    return f"moment:{event}"


def matches(trigger: Trigger, row: FeedRow) -> bool:
    """Whether the row is what a campaign waits for. An empty list matches any. Who leaves a segment because they are
    erased is told of nothing; what becomes of a user because another one is part of them, that one was told of."""
    if row.cause[0] == "merge":
        return False
    match trigger:
        case StageTrigger():
            return row.kind == "stage_changed" and _moved(trigger.from_, trigger.to, row)
        case ActivityTrigger():
            return row.kind == "activity_changed" and _moved(trigger.from_, trigger.to, row)
        case EventTrigger():
            return row.kind == "moment" and _happened(trigger, row)
        case SegmentTrigger():
            return row.kind == "segment_entered" and row.payload["segment"] in trigger.segment
        case SegmentExitTrigger():
            left = row.kind == "segment_exited" and row.cause[0] != BY_ERASURE
            return left and row.payload["segment"] in trigger.segment
        case AlertTrigger() | ScheduleTrigger():
            return False


def _moved(sources: list[Any], targets: list[Any], row: FeedRow) -> bool:
    return (not sources or row.payload.get("from") in sources) and (not targets or row.payload["to"] in targets)


def _happened(trigger: EventTrigger, row: FeedRow) -> bool:
    """Imported events are history, of whatever age: they set nothing going, though they may call something off."""
    told = row.payload["properties"]
    return (
        row.payload["event"] in trigger.event
        and row.payload["mode"] != "import"
        and all(any(_alike(told.get(name), one) for one in several) for name, several in trigger.where.items())
        and all(_named(row, name) is not None for name in trigger.same)
    )


def calls_off(trigger: Trigger, occurrence: Occurrence, row: FeedRow) -> bool:
    """Whether the row ends the waiting of an occurrence: by when it happened, not by when it was read. Whoever
    withdraws what lets places be recorded is not told of one any more, whenever that was."""
    if row.kind == "consent_set" and isinstance(trigger, EventTrigger):
        return "city" in occurrence.variables and False in (row.payload.get(purpose) for purpose in _OF_PLACES)
    if not occurrence.occurred_at <= row.occurred_at < occurrence.due_at:
        return False
    match trigger:
        case EventTrigger():
            told = row.kind == "moment" and row.payload["event"] in trigger.unless
        case SegmentTrigger():
            told = row.kind == "segment_exited"
        case SegmentExitTrigger():
            told = row.kind == "segment_entered"
        case _:
            return False
    return told and all(_alike(_named(row, name), value) for name, value in occurrence.same.items())


def _named(row: FeedRow, name: str) -> Any:
    """What a row says of something two rows may have to agree in."""
    if row.kind != "moment" or name == "city":
        return row.payload.get("city_id" if name == "city" else name)
    return row.payload["properties"].get(name)


def _alike(one: Any, other: Any) -> bool:
    """Equal as JSON has it: true is not 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def occurrence_of(trigger: Trigger, row: FeedRow, facts: Mapping[str, Any]) -> Occurrence:
    """The occurrence a row is to a campaign. `facts`: what there is to say of the city or the segment it names.

    Its id holds nothing of the log or the ledger (`gen`, `seq`, offsets): what is decided again after a restore is
    the same occurrence, and is not sent again.
    """
    at, payload = row.occurred_at, row.payload
    match trigger:
        case EventTrigger():
            told = {**payload["properties"], "name": payload["event"]}
            return Occurrence(
                id=f"moment:{payload['event']}:{row.cause[1]}",
                occurred_at=at,
                variables={"event": told, **facts},
                due_at=_due(at, trigger.delay_minutes),
                same={name: _named(row, name) for name in trigger.same},
            )
        case SegmentTrigger() | SegmentExitTrigger():
            return Occurrence(
                id=f"{row.kind}:{payload['segment']}:{at}",
                occurred_at=at,
                variables=dict(facts),
                due_at=_due(at, trigger.delay_minutes),
                same={"segment": payload["segment"]},
            )
    source, target = payload.get("from"), payload["to"]
    return Occurrence(
        id=f"{row.kind}:{source or ''}>{target}:{at}",
        occurred_at=at,
        variables={"change": {"from": source, "to": target}},
    )


def _due(at: int, delay_minutes: int) -> int:
    return at + delay_minutes * MINUTE_MS if delay_minutes else 0


def city_facts(place: Place | None) -> dict[str, Any]:
    """A city as templates see it; whether it is `theirs`, the user's default city or one they added, is asked when the
    message is planned."""
    return {
        "id": place.city_id if place else None,
        "name": place.name if place else "",
        "state": place.state if place else None,
        "country": place.country if place else None,
        "timezone": place.timezone if place else None,
    }


def known_variables(trigger: Trigger, rules: Rules) -> Mapping[str, bool]:
    """What a campaign's templates may name → whether it may be missing (see `template_check.analyse`)."""
    match trigger:
        case AlertTrigger():
            return _USER | _ALERT | _CITY
        case ScheduleTrigger():
            return _USER | _CITY | (_FORECAST if trigger.context == "forecast" else {})
        case EventTrigger():
            return _USER | _event_variables(trigger, rules)
        case SegmentTrigger() | SegmentExitTrigger():
            return _USER | _SEGMENT
    return _USER | _CHANGE


def _event_variables(trigger: EventTrigger, rules: Rules) -> dict[str, bool]:
    listed = {name for event in trigger.event for name in rules.intake.properties.get(event, ())}
    sure = trigger.where.keys() | set(trigger.same)
    named = {f"event.{name}": name not in sure for name in listed} | {"event.name": False}
    with_city = [event in city_events(rules) for event in trigger.event]
    if all(with_city):
        return named | _CITY
    return named | (dict.fromkeys(_CITY, True) if any(with_city) else {})
