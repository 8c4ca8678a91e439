"""What may be posted as context, and how it travels in `context.events.v1`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from services.notifier.context.alerts import Alert, Unreadable, from_contract
from services.notifier.context.nws import is_feed, parse
from shared.gazetteer import Gazetteer


class ContextRecord(msgspec.Struct, frozen=True):
    """One record of `context.events.v1`. `kind` is `nws` (a GeoJSON feature as it came) or `alert`."""

    id: str
    kind: str
    received_at: int
    body: msgspec.Raw


encode_context = msgspec.json.Encoder().encode
decode_context = msgspec.json.Decoder(ContextRecord).decode


def split(body: Mapping[str, Any], gazetteer: Gazetteer, now_ms: int) -> tuple[list[ContextRecord], list[Unreadable]]:
    """The records a posted body becomes, and what in it could not be read. ValueError when it is neither
    the contract's form nor GeoJSON of the National Weather Service."""
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


def read(record: ContextRecord, gazetteer: Gazetteer) -> Alert | Unreadable:
    """The alert in a record."""
    body = msgspec.json.decode(record.body)
    if record.kind == "nws":
        return parse(body)[0]
    try:
        return from_contract(body, gazetteer)
    except ValueError as error:
        return Unreadable(record.id, str(error))
