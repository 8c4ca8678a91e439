"""What may be posted as context, and how it travels in `context.events.v1`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from services.notifier.context import forecasts
from services.notifier.context.alerts import Alert, Unreadable, from_contract
from services.notifier.context.forecasts import Forecast
from services.notifier.context.nws import is_feed, parse
from services.notifier.context.reading import cities_in
from shared.gazetteer import Gazetteer


class ContextRecord(msgspec.Struct, frozen=True):
    """One record of `context.events.v1`. `kind` is `nws` (a GeoJSON feature as it came), `alert`, `forecast`, or
    `trigger` (a campaign set going by hand)."""

    id: str
    kind: str
    received_at: int
    body: msgspec.Raw


class Triggered(msgspec.Struct, frozen=True):
    """A campaign with a schedule is to be set going now: once for each `key`. `city_ids`: where (None: everywhere)."""

    id: str
    campaign: str
    key: str
    city_ids: tuple[int, ...] | None


encode_context = msgspec.json.Encoder().encode
decode_context = msgspec.json.Decoder(ContextRecord).decode


def split(body: Mapping[str, Any], gazetteer: Gazetteer, now_ms: int) -> tuple[list[ContextRecord], list[Unreadable]]:
    """The records a posted body becomes, and what in it could not be read. ValueError when it is neither
    the contract's form nor GeoJSON of the National Weather Service."""
    if body.get("kind") == "forecast":
        return _forecasts(body, gazetteer, now_ms)
    if not is_feed(body):
        alert = from_contract(body, gazetteer)
        return [ContextRecord(alert.id, "alert", now_ms, msgspec.Raw(msgspec.json.encode(body)))], []
    features = [body] if body["type"] == "Feature" else body.get("features")
    if not isinstance(features, list):
        raise ValueError("features must be a list")  # noqa: TRY004 - bad data is one kind of error
    records: list[ContextRecord] = []
    unreadable: list[Unreadable] = []
    for feature in features:
        for found in parse(feature):
            if isinstance(found, Alert):
                records.append(ContextRecord(found.id, "nws", now_ms, msgspec.Raw(msgspec.json.encode(feature))))
            else:
                unreadable.append(found)
    return records, unreadable


def _forecasts(
    body: Mapping[str, Any], gazetteer: Gazetteer, now_ms: int
) -> tuple[list[ContextRecord], list[Unreadable]]:
    """Of several, those that cannot be read are named and the others taken; one alone must be readable."""
    records: list[ContextRecord] = []
    unreadable: list[Unreadable] = []
    for one in forecasts.several(body):
        try:
            found = forecasts.from_contract(one, gazetteer)
        except ValueError as error:
            if "items" not in body:
                raise
            unreadable.append(Unreadable(str(one.get("id") or "")[:512], str(error)))
        else:
            records.append(ContextRecord(found.id, "forecast", now_ms, msgspec.Raw(msgspec.json.encode(one))))
    return records, unreadable


def trigger(campaign: str, key: str, areas: Any, gazetteer: Gazetteer, now_ms: int) -> ContextRecord:
    """The record that sets a campaign going, in some areas or (None) everywhere. ValueError when these are none."""
    if areas is not None:
        cities_in(areas, gazetteer)
    body = {"campaign": campaign, "key": key, "areas": areas}
    return ContextRecord(f"trigger:{campaign}:{key}", "trigger", now_ms, msgspec.Raw(msgspec.json.encode(body)))


def read(record: ContextRecord, gazetteer: Gazetteer) -> Alert | Forecast | Triggered | Unreadable:
    """What is in a record."""
    body = msgspec.json.decode(record.body)
    try:
        match record.kind:
            case "nws":
                return parse(body)[0]
            case "forecast":
                return forecasts.from_contract(body, gazetteer)
            case "trigger":
                where = None if body["areas"] is None else cities_in(body["areas"], gazetteer)
                return Triggered(record.id, body["campaign"], body["key"], where)
            case _:
                return from_contract(body, gazetteer)
    except ValueError as error:
        return Unreadable(record.id, str(error))
