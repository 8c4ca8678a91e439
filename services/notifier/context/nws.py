"""What does a feed of the US National Weather Service say?

Format: GeoJSON of api.weather.gov/alerts (CAP 1.2 as JSON). Pure: bad parts of a feed are values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, cast, get_args

from services.notifier.context.alerts import (
    Alert,
    MessageType,
    Status,
    Unreadable,
    Verdict,
    cities_of,
    from_contract,
    is_marine,
    valid_until,
    verdict,
)
from services.notifier.context.polygon import Polygon, read_geometry
from shared.contracts.rules import Severity
from shared.process.clock import parse_instant

__all__ = [
    "Alert",
    "Unreadable",
    "Verdict",
    "cities_of",
    "from_contract",
    "is_feed",
    "is_marine",
    "parse",
    "shift",
    "valid_until",
    "verdict",
]

_TIMES = ("sent", "effective", "onset", "expires", "ends")


def is_feed(body: Mapping[str, Any]) -> bool:
    """Whether a body of `POST /v1/context` is GeoJSON rather than the contract's own form."""
    return body.get("type") in ("FeatureCollection", "Feature")


def parse(feed: bytes | Mapping[str, Any]) -> list[Alert | Unreadable]:
    """The alerts of a feature collection, or of one feature, in the feed's order.

    What cannot be read is an `Unreadable` in its place, so that one bad feature costs no other.
    """
    if isinstance(feed, bytes):
        try:
            feed = json.loads(feed)
        except (ValueError, RecursionError) as error:
            return [Unreadable("", f"not JSON: {error}")]
    if not isinstance(feed, Mapping) or not is_feed(feed):
        return [Unreadable("", "neither a FeatureCollection nor a Feature")]
    features = [feed] if feed["type"] == "Feature" else feed.get("features")
    if not isinstance(features, list):
        return [Unreadable("", "features is not a list")]
    return [_feature(feature) for feature in features]


def _feature(feature: Any) -> Alert | Unreadable:
    properties = feature.get("properties") if isinstance(feature, Mapping) else None
    if not isinstance(properties, Mapping):
        return Unreadable("", "feature without properties")
    alert_id = properties.get("id")
    if not isinstance(alert_id, str) or not alert_id or len(alert_id) > 512:
        return Unreadable("", "feature without an id")
    try:
        return _alert(alert_id, properties, _polygons(feature.get("geometry")))
    except (ValueError, OverflowError) as error:
        return Unreadable(alert_id, str(error))


def _alert(alert_id: str, properties: Mapping[str, Any], polygons: tuple[Polygon, ...]) -> Alert:
    sent_at = _required_instant(properties, "sent")
    ends_at = _instant(properties, "ends")
    expires_at = _instant(properties, "expires")
    if expires_at is None and ends_at is None:
        raise ValueError("neither expires nor ends")
    event = _text(properties, "event")
    if not event:
        raise ValueError("no event")
    geocode = properties.get("geocode")
    geocode = geocode if isinstance(geocode, Mapping) else {}
    return Alert(
        id=alert_id,
        event=event,
        status=cast(Status, _one_of(properties, "status", get_args(Status))),
        message_type=cast(MessageType, _one_of(properties, "messageType", get_args(MessageType))),
        severity=cast(Severity, _one_of(properties, "severity", get_args(Severity), "Unknown")),
        urgency=_text(properties, "urgency") or "Unknown",
        certainty=_text(properties, "certainty") or "Unknown",
        headline=_text(properties, "headline") or event,
        area=_text(properties, "areaDesc"),
        sent_at=sent_at,
        onset_at=_instant(properties, "onset") or _instant(properties, "effective") or sent_at,
        expires_at=expires_at if expires_at is not None else cast(int, ends_at),
        ends_at=ends_at,
        description=_text(properties, "description") or None,
        instruction=_text(properties, "instruction") or None,
        references=_references(properties.get("references")),
        same=_codes(geocode.get("SAME")),
        ugc=_codes(geocode.get("UGC")),
        polygons=polygons,
    )


def _polygons(geometry: Any) -> tuple[Polygon, ...]:
    """A geometry that cannot be read costs no alert: its counties are left."""
    try:
        return read_geometry(geometry)
    except ValueError:
        return ()


def _text(properties: Mapping[str, Any], key: str) -> str:
    """Postgres stores no NUL, so none leaves here."""
    value = properties.get(key)
    return value.replace("\x00", "").strip() if isinstance(value, str) else ""


def _one_of(properties: Mapping[str, Any], key: str, choices: tuple[str, ...], default: str | None = None) -> str:
    value = properties.get(key)
    if isinstance(value, str) and value in choices:
        return value
    if default is None:
        raise ValueError(f"{key} {str(value)[:40]!r} is none of {', '.join(choices)}")
    return default


def _instant(properties: Mapping[str, Any], key: str) -> int | None:
    value = properties.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{key} is no instant")  # noqa: TRY004 - bad data is one kind of error
    return parse_instant(value)


def _required_instant(properties: Mapping[str, Any], key: str) -> int:
    value = _instant(properties, key)
    if value is None:
        raise ValueError(f"no {key}")
    return value


def _references(listed: Any) -> tuple[tuple[str, int], ...]:
    """Entries that cannot be read are left out: a chain with a gap is better than no alert."""
    out = []
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, Mapping) and isinstance(found := entry.get("identifier"), str) and found:
            try:
                out.append((found, _instant(entry, "sent") or 0))
            except (ValueError, OverflowError):
                out.append((found, 0))
    return tuple(out)


def _codes(listed: Any) -> tuple[str, ...]:
    return tuple(code for code in listed if isinstance(code, str)) if isinstance(listed, list) else ()


def shift(feed: Mapping[str, Any], to_ms: int) -> dict[str, Any]:
    """The feed as if it had been fetched at `to_ms`: every instant moved by what `updated` moves.

    Texts keep the hours they were written with. ValueError when `updated` is missing.
    """
    by = timedelta(milliseconds=to_ms - _required_instant(feed, "updated"))

    def moved(instant: str) -> str:
        return (datetime.fromisoformat(instant) + by).isoformat()

    def all_moved(fields: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
        return {k: moved(v) if k in keys and isinstance(v, str) else v for k, v in fields.items()}

    features = []
    for feature in feed["features"]:
        properties = all_moved(feature["properties"], _TIMES)
        properties["references"] = [all_moved(r, ("sent",)) for r in properties.get("references") or ()]
        features.append({**feature, "properties": properties})
    return {**all_moved(feed, ("updated", "@saved")), "features": features}
