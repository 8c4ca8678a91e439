"""How a body of `POST /v1/context` is read: areas, texts and instants, each fault as a ValueError of one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.notifier.context.polygon import cities_inside, read_ring
from shared.gazetteer import Gazetteer
from shared.gazetteer.names import FIPS_STATES, state_code
from shared.process.clock import parse_instant

MAX_AREAS = 4_000
MAX_TEXT_CHARS = 8_000


def read_areas(told: Any, gazetteer: Gazetteer) -> tuple[tuple[str, ...], tuple[int, ...], list[str]]:
    """SAME codes, city ids, and names to show, of a list of `{"city_id"}`, `{"same"}`, `{"state"}`, `{"city", "state"?,
    "country"?}` or `{"polygon": [[longitude, latitude]…]}`; the last means the cities whose centre is inside."""
    if not isinstance(told, list) or not 1 <= len(told) <= MAX_AREAS:
        raise ValueError(f"areas must be a list of 1 to {MAX_AREAS} areas")
    same: dict[str, None] = {}
    city_ids: dict[int, None] = {}
    names: dict[str, None] = {}
    for number, area in enumerate(told):
        where = f"areas[{number}]"
        if not isinstance(area, Mapping):
            raise ValueError(f"{where} must be an object with city_id, same, city, state or polygon")  # noqa: TRY004
        if (code := area.get("same")) is not None:
            if not (isinstance(code, str) and len(code) == 6 and code.isascii() and code.isdigit()):
                raise ValueError(f"{where}.same must be a SAME code of six digits, not {shown(code)}")
            same[code] = None
        elif (city_id := area.get("city_id")) is not None:
            # ids are strings in the contract's JSON; numbers are understood too
            number_ = int(city_id) if isinstance(city_id, str) and _is_id(city_id) else city_id
            place = gazetteer.get(number_) if isinstance(number_, int) and not isinstance(number_, bool) else None
            if place is None:
                raise ValueError(f"{where}.city_id {shown(city_id)} is no city of the gazetteer")
            city_ids[place.city_id] = names[place.name] = None
        elif (city := area.get("city")) is not None:
            parts = (city, area.get("state"), area.get("country"))
            texts = all(p is None or isinstance(p, str) for p in parts)
            found = gazetteer.get(gazetteer.normalise(*parts) or 0) if texts else None
            if found is None:
                raise ValueError(f"{where} names a city that is not known: {shown(dict(area))}")
            city_ids[found.city_id] = names[found.name] = None
        elif (ring := area.get("polygon")) is not None:
            city_ids.update(dict.fromkeys(_inside(where, ring, gazetteer)))
        elif isinstance(state := area.get("state"), str) and (known := state_code(state)):
            names[known] = None
            if known in FIPS_STATES:
                same[f"0{FIPS_STATES[known]}000"] = None
            else:
                city_ids.update(dict.fromkeys(gazetteer.by_state(known)))
        else:
            raise ValueError(
                f"{where} must name a city_id, a SAME code, a city, a known state or a polygon: {shown(dict(area))}"
            )
    return tuple(same), tuple(city_ids), list(names)


def _inside(where: str, ring: Any, gazetteer: Gazetteer) -> list[int]:
    try:
        return sorted(cities_inside([(read_ring(ring),)], gazetteer))
    except ValueError as error:
        raise ValueError(f"{where}.polygon: {error}") from error


def cities_in(areas: Any, gazetteer: Gazetteer) -> tuple[int, ...]:
    """Ids of the cities of areas, ascending. ValueError when there are none."""
    same, listed, _ = read_areas(areas, gazetteer)
    found = {*listed, *(city for code in same for city in gazetteer.by_same(code))}
    if not found:
        raise ValueError("areas name no known city")
    return tuple(sorted(found))


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12


def shown(value: Any) -> str:
    """The value as an error may quote it: at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def read_text(body: Mapping[str, Any], where: str, key: str, limit: int = 256) -> str:
    """Text that must be there, at most `limit` characters; errors call it `where`."""
    value = body.get(key)
    if not isinstance(value, str) or not value.strip() or len(value) > limit or "\x00" in value:
        raise ValueError(f"{where} must be text of 1 to {limit} characters, not {shown(value)}")
    return value


def read_optional(body: Mapping[str, Any], key: str) -> str | None:
    """Text that may be missing or null; empty counts as missing."""
    value = body.get(key)
    if value is not None and (not isinstance(value, str) or len(value) > MAX_TEXT_CHARS or "\x00" in value):
        raise ValueError(f"{key} must be text of at most {MAX_TEXT_CHARS} characters, not {shown(value)}")
    return value or None


def read_choice(body: Mapping[str, Any], key: str, choices: tuple[str, ...], default: str) -> str:
    """One of `choices`; `default` where it is missing or null."""
    value = body.get(key)
    if value is None:
        return default
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, not {shown(value)}")
    return str(value)


def read_instant(body: Mapping[str, Any], key: str) -> int:
    """Milliseconds of an RFC 3339 instant that must be there."""
    value = body.get(key)
    try:
        if isinstance(value, str):
            return parse_instant(value)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{key} must be an RFC 3339 instant such as 2026-01-02T03:04:05Z, not {shown(value)}")


def read_span(body: Mapping[str, Any]) -> tuple[int, int]:
    """`starts_at` and `ends_at` of a body, the first before the second."""
    starts_at, ends_at = read_instant(body, "starts_at"), read_instant(body, "ends_at")
    if ends_at <= starts_at:
        raise ValueError("ends_at must be later than starts_at")
    return starts_at, ends_at
