"""What is a weather alert, where does it hold, how long, and does it concern anyone?

Source-neutral: `nws` reads the National Weather Service's feed into it, `from_contract` the body of
`POST /v1/context`. Pure. Terms are those of CAP 1.2 (OASIS, 2010).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import msgspec

from shared.contracts.rules import Severity
from shared.gazetteer import Gazetteer
from shared.gazetteer.names import FIPS_STATES, state_code
from shared.process.clock import parse_instant

Status = Literal["Actual", "Exercise", "System", "Test", "Draft"]
MessageType = Literal["Alert", "Update", "Cancel", "Ack", "Error"]
Verdict = Literal["test_or_draft", "not_an_alert", "marine", "over", "cancel", "no_known_city", "expired", "matched"]

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

MAX_AREAS = 4_000
MAX_TEXT_CHARS = 8_000


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One message about a hazard; instants are milliseconds.

    It holds where any of `same` (SAME codes) or `city_ids` is. `references` are the messages it replaces, as
    (id, sent at; 0 when not told).
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
    """Ids of the cities where it holds, ascending."""
    found = {city_id for city_id in alert.city_ids if gazetteer.get(city_id)}
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

    `{"id", "kind": "alert", "areas": [{"city_id"} | {"same"} | {"city", "state"?, "country"?} | {"state"}…],
    "severity"?, "starts_at", "ends_at", "replaces"?: [id…], "data": {"event", "headline"?, "description"?,
    "instruction"?, "area"?, "urgency"?, "certainty"?, "status"?, "message_type"?, "sent_at"?}}`.

    ValueError says in one sentence what is wrong.
    """
    if body.get("kind") != "alert":
        raise ValueError(f'kind must be "alert", not {_shown(body.get("kind"))}')
    extra = body.get("data")
    if not isinstance(extra, Mapping):
        raise ValueError("data must be an object with at least an event")  # noqa: TRY004 - bad data is one kind of error
    starts_at, ends_at = _instant(body, "starts_at"), _instant(body, "ends_at")
    if ends_at <= starts_at:
        raise ValueError("ends_at must be later than starts_at")
    replaces = body.get("replaces") or []
    if not isinstance(replaces, list) or not all(isinstance(r, str) and r for r in replaces):
        raise ValueError("replaces must be a list of ids")
    same, city_ids, names = _areas(body.get("areas"), gazetteer)
    event = _text(extra, "data.event", "event")
    return Alert(
        id=_text(body, "id", "id", 512),
        event=event,
        status=cast(Status, _one_of(extra, "status", get_args(Status), "Actual")),
        message_type=cast(
            MessageType, _one_of(extra, "message_type", get_args(MessageType), "Update" if replaces else "Alert")
        ),
        severity=cast(Severity, _one_of(body, "severity", get_args(Severity), "Unknown")),
        urgency=_optional(extra, "urgency") or "Unknown",
        certainty=_optional(extra, "certainty") or "Unknown",
        headline=_optional(extra, "headline") or event,
        area=_optional(extra, "area") or "; ".join(names[:20]),
        sent_at=_instant(extra, "sent_at") if extra.get("sent_at") is not None else starts_at,
        onset_at=starts_at,
        expires_at=ends_at,
        ends_at=ends_at,
        description=_optional(extra, "description"),
        instruction=_optional(extra, "instruction"),
        references=tuple((r, 0) for r in replaces),
        same=same,
        city_ids=city_ids,
    )


def _areas(areas: Any, gazetteer: Gazetteer) -> tuple[tuple[str, ...], tuple[int, ...], list[str]]:
    """SAME codes, city ids, and names to show."""
    if not isinstance(areas, list) or not 1 <= len(areas) <= MAX_AREAS:
        raise ValueError(f"areas must be a list of 1 to {MAX_AREAS} areas")
    same: dict[str, None] = {}
    city_ids: dict[int, None] = {}
    names: dict[str, None] = {}
    for number, area in enumerate(areas):
        where = f"areas[{number}]"
        if not isinstance(area, Mapping):
            raise ValueError(f"{where} must be an object with city_id, same, city or state")  # noqa: TRY004
        if (code := area.get("same")) is not None:
            if not (isinstance(code, str) and len(code) == 6 and code.isascii() and code.isdigit()):
                raise ValueError(f"{where}.same must be a SAME code of six digits, not {_shown(code)}")
            same[code] = None
        elif (city_id := area.get("city_id")) is not None:
            # ids are strings in the contract's JSON; numbers are understood too
            number_ = int(city_id) if isinstance(city_id, str) and _is_id(city_id) else city_id
            place = gazetteer.get(number_) if isinstance(number_, int) and not isinstance(number_, bool) else None
            if place is None:
                raise ValueError(f"{where}.city_id {_shown(city_id)} is no city of the gazetteer")
            city_ids[place.city_id] = names[place.name] = None
        elif (city := area.get("city")) is not None:
            parts = (city, area.get("state"), area.get("country"))
            texts = all(p is None or isinstance(p, str) for p in parts)
            found = gazetteer.get(gazetteer.normalise(*parts) or 0) if texts else None
            if found is None:
                raise ValueError(f"{where} names a city that is not known: {_shown(dict(area))}")
            city_ids[found.city_id] = names[found.name] = None
        elif isinstance(state := area.get("state"), str) and (known := state_code(state)):
            names[known] = None
            if known in FIPS_STATES:
                same[f"0{FIPS_STATES[known]}000"] = None
            else:
                city_ids.update(dict.fromkeys(gazetteer.by_state(known)))
        else:
            raise ValueError(f"{where} must name a city_id, a SAME code, a city or a known state: {_shown(dict(area))}")
    return tuple(same), tuple(city_ids), list(names)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _text(body: Mapping[str, Any], where: str, key: str, limit: int = 256) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value.strip() or len(value) > limit or "\x00" in value:
        raise ValueError(f"{where} must be text of 1 to {limit} characters, not {_shown(value)}")
    return value


def _optional(body: Mapping[str, Any], key: str) -> str | None:
    value = body.get(key)
    if value is not None and (not isinstance(value, str) or len(value) > MAX_TEXT_CHARS or "\x00" in value):
        raise ValueError(f"{key} must be text of at most {MAX_TEXT_CHARS} characters, not {_shown(value)}")
    return value or None


def _one_of(body: Mapping[str, Any], key: str, choices: tuple[str, ...], default: str) -> str:
    value = body.get(key)
    if value is None:
        return default
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, not {_shown(value)}")
    return str(value)


def _instant(body: Mapping[str, Any], key: str) -> int:
    value = body.get(key)
    try:
        if isinstance(value, str):
            return parse_instant(value)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{key} must be an RFC 3339 instant such as 2026-01-02T03:04:05Z, not {_shown(value)}")
