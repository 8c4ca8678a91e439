"""Which city does an event name?"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, Protocol

MAX_NAME_CHARS = 120


class Unknown(Enum):
    """The event names a place, and nobody knows where it is."""

    PLACE = "unknown_place"


UNKNOWN_PLACE: Final = Unknown.PLACE


class Places(Protocol):
    """What `shared.gazetteer.Gazetteer` answers."""

    def normalise(self, city: str, state: str | None = None, country: str | None = None) -> int | None: ...

    def nearest(self, lat: float, lon: float) -> int | None: ...


def locate(properties: Mapping[str, Any], gazetteer: Places) -> int | None | Unknown:
    """The id of the city in `{city, state?, country?}` or `{lat, lon}` (also `latitude`, `longitude`).

    None: no place is named (keys absent, null or blank). `UNKNOWN_PLACE`: one is, and the gazetteer does not
    know it, or it is not of the right type. A name that is known goes before a point. Total: never raises.
    """
    name = _stated(properties, "city")
    lat, lon = _stated(properties, "lat", "latitude"), _stated(properties, "lon", "longitude")
    if name is None and lat is None and lon is None:
        return None
    found = _by_name(name, properties, gazetteer) if name is not None else None
    if found is None and _is_number(lat) and _is_number(lon) and -90 <= lat <= 90 and -180 <= lon <= 180:
        found = gazetteer.nearest(float(lat), float(lon))
    return UNKNOWN_PLACE if found is None else found


def _by_name(name: Any, properties: Mapping[str, Any], gazetteer: Places) -> int | None:
    parts = (name, _stated(properties, "state"), _stated(properties, "country"))
    if all(part is None or (isinstance(part, str) and len(part) <= MAX_NAME_CHARS) for part in parts):
        return gazetteer.normalise(*parts)
    return None


def _stated(properties: Mapping[str, Any], *keys: str) -> Any:
    """The first of the keys that holds something; null and blank text hold nothing."""
    for key in keys:
        value = properties.get(key)
        if value is not None and not (isinstance(value, str) and not value.strip()):
            return value
    return None


def _is_number(value: Any) -> bool:
    """JSON's true is no latitude, though Python's is an int. NaN and infinity fail the bounds."""
    return isinstance(value, int | float) and not isinstance(value, bool)
