"""What is a weather alert, where does it hold, how long, and does it concern anyone?

Source-neutral: `nws` reads the National Weather Service's feed into it, `from_contract` the body of
`POST /v1/context`. Pure. Terms are those of CAP 1.2 (OASIS, 2010).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import msgspec

from services.notifier.context.polygon import Polygon, cities_inside
from services.notifier.context.reading import (
    read_areas,
    read_choice,
    read_instant,
    read_optional,
    read_span,
    read_text,
    shown,
)
from shared.contracts.rules import Severity
from shared.gazetteer import Gazetteer

Status = Literal["Actual", "Exercise", "System", "Test", "Draft"]
MessageType = Literal["Alert", "Update", "Cancel", "Ack", "Error"]
Verdict = Literal["test_or_draft", "not_an_alert", "marine", "over", "cancel", "no_known_city", "expired", "matched"]
NO_PART: frozenset[Verdict] = frozenset({"test_or_draft", "not_an_alert"})
"""What says nothing of the weather: it joins no chain, and replaces nothing, whatever it refers to."""

MARINE_STATES = frozenset({
    "57", "58", "59", "61", "65", "73", "75", "77", "91", "92", "93", "94", "96", "97", "98",
})  # fmt: skip
"""State digits of SAME codes that are waters: PZ, PK, PH, PS, PM, AN, AM, GM, and the lakes LS, LM, LH, LC, LE,
LO and the St. Lawrence SL, in this order. Source: NOAA Weather Radio SAME coding for marine areas
(weather.gov/marine/wxradio); the letters are NWS Directive 10-302's marine area codes. A test holds every
alert of the recorded feed to the letters of its UGC zones."""

MARINE_LETTERS = frozenset({
    "PZ", "PK", "PH", "PS", "PM", "AN", "AM", "GM", "LS", "LM", "LH", "LC", "LE", "LO", "SL",
})  # fmt: skip


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One message about a hazard; instants are milliseconds.

    It holds in its `polygons`, where it has any, else where any of `same` (SAME codes) is; and in `city_ids`.
    `references` are the messages it replaces, as (id, sent at; 0 when not told).
    """

    id: str
    event: str
    status: Status
    message_type: MessageType
    severity: Severity
    urgency: str
    certainty: str
    headline: str
    area: str
    sent_at: int
    onset_at: int
    expires_at: int
    ends_at: int | None = None
    description: str | None = None
    instruction: str | None = None
    references: tuple[tuple[str, int], ...] = ()
    same: tuple[str, ...] = ()
    ugc: tuple[str, ...] = ()
    city_ids: tuple[int, ...] = ()
    polygons: tuple[Polygon, ...] = ()


class Unreadable(msgspec.Struct, frozen=True):
    """Something in a feed that is no alert, and why; `id` is "" where none could be read."""

    id: str
    reason: str


def valid_until(alert: Alert) -> int:
    """The instant after which the alert says nothing any more: the earlier of `expires` and `ends`."""
    return alert.expires_at if alert.ends_at is None else min(alert.expires_at, alert.ends_at)


def is_marine(alert: Alert) -> bool:
    """Whether it holds on waters only. One county, or one city named by id, makes it land."""
    if alert.city_ids:
        return False
    if alert.same:
        return all(code[1:3] in MARINE_STATES for code in alert.same)
    return bool(alert.ugc) and all(code[:2] in MARINE_LETTERS for code in alert.ugc)


def cities_of(alert: Alert, gazetteer: Gazetteer) -> tuple[int, ...]:
    """Ids of the cities where it holds, ascending: with polygons, those whose centre is inside one."""
    found = {city_id for city_id in alert.city_ids if gazetteer.get(city_id)}
    if alert.polygons:
        return tuple(sorted(found | cities_inside(alert.polygons, gazetteer)))
    for code in alert.same:
        found.update(gazetteer.by_same(code))
    return tuple(sorted(found))


def verdict(alert: Alert, gazetteer: Gazetteer, now_ms: int | None = None) -> Verdict:
    """What becomes of the alert, the first of these that holds:

    `test_or_draft` its status is not Actual · `not_an_alert` an acknowledgement or an error · `marine` it holds on
    waters only · `cancel` it takes back what it refers to · `over` urgency Past: nothing is to be done any more
    (the NWS ends a watch with a message of type Alert that says so) · `no_known_city` · `expired` by `now_ms`,
    where that is given · `matched`.
    """
    if alert.status != "Actual":
        return "test_or_draft"
    if alert.message_type in ("Ack", "Error"):
        return "not_an_alert"
    if is_marine(alert):
        return "marine"
    if alert.message_type == "Cancel":
        return "cancel"
    if alert.urgency == "Past":
        return "over"
    if not cities_of(alert, gazetteer):
        return "no_known_city"
    if now_ms is not None and valid_until(alert) <= now_ms:
        return "expired"
    return "matched"


def from_contract(body: Mapping[str, Any], gazetteer: Gazetteer) -> Alert:
    """The alert in a body of `POST /v1/context`:

    `{"id", "kind": "alert", "areas": [{"city_id"} | {"same"} | {"city", "state"?, "country"?} | {"state"}
    | {"polygon": [[longitude, latitude]…]}…],
    "severity"?, "starts_at", "ends_at", "replaces"?: [id…], "data": {"event", "headline"?, "description"?,
    "instruction"?, "area"?, "urgency"?, "certainty"?, "status"?, "message_type"?, "sent_at"?}}`.

    ValueError says in one sentence what is wrong.
    """
    if body.get("kind") != "alert":
        raise ValueError(f'kind must be "alert" or "forecast", not {shown(body.get("kind"))}')
    extra = body.get("data")
    if not isinstance(extra, Mapping):
        raise ValueError("data must be an object with at least an event")  # noqa: TRY004 - bad data is one kind of error
    starts_at, ends_at = read_span(body)
    replaces = body.get("replaces") or []
    if not isinstance(replaces, list) or not all(isinstance(r, str) and r for r in replaces):
        raise ValueError("replaces must be a list of ids")
    same, city_ids, names = read_areas(body.get("areas"), gazetteer)
    event = read_text(extra, "data.event", "event")
    return Alert(
        id=read_text(body, "id", "id", 512),
        event=event,
        status=cast(Status, read_choice(extra, "status", get_args(Status), "Actual")),
        message_type=cast(
            MessageType, read_choice(extra, "message_type", get_args(MessageType), "Update" if replaces else "Alert")
        ),
        severity=cast(Severity, read_choice(body, "severity", get_args(Severity), "Unknown")),
        urgency=read_optional(extra, "urgency") or "Unknown",
        certainty=read_optional(extra, "certainty") or "Unknown",
        headline=read_optional(extra, "headline") or event,
        area=read_optional(extra, "area") or "; ".join(names[:20]),
        sent_at=read_instant(extra, "sent_at") if extra.get("sent_at") is not None else starts_at,
        onset_at=starts_at,
        expires_at=ends_at,
        ends_at=ends_at,
        description=read_optional(extra, "description"),
        instruction=read_optional(extra, "instruction"),
        references=tuple((r, 0) for r in replaces),
        same=same,
        city_ids=city_ids,
    )
