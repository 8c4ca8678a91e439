"""What the notifier knows of one user, and how a row of the feed changes it."""

from __future__ import annotations

from typing import Any

import msgspec

from shared.contracts.changes import USER_ERASED
from shared.contracts.events import Device, FeedRow

MAX_DEVICES = 8


class Recipient(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One user's row; msgpack by position, so fields are only ever appended.

    `devices` are in the order they were set, the latest last. `push_consent` is None until the user was
    asked. `added` are GeoNames ids, `segments` ids of segments, both ascending. `assignment_id` decides the holdouts
    and never changes.
    """

    user_id: str
    devices: tuple[Device, ...] = ()
    push_consent: bool | None = None
    locale: str | None = None
    timezone: str | None = None
    stage: str | None = None
    activity: str | None = None
    default_city: int | None = None
    added: tuple[int, ...] = ()
    assignment_id: str = ""
    segments: tuple[str, ...] = ()


encode_recipient = msgspec.msgpack.Encoder().encode
decode_recipient = msgspec.msgpack.Decoder(Recipient).decode


def fold(recipient: Recipient | None, row: FeedRow) -> Recipient | None:
    """The user's row after `row`; None where there is none to keep.

    A row that changes nothing returns the very object that came in, so the caller need not write it. Folding
    a row again changes nothing. Kinds that are no business of the notifier are ignored.
    """
    if row.kind == USER_ERASED or (row.kind == "user_merged" and row.payload["from"] == row.user_id):
        return None
    known = recipient or Recipient(row.user_id, assignment_id=row.user_id)
    changes = _changes(known, row.kind, row.payload)
    changed = {name: value for name, value in changes.items() if getattr(known, name) != value}
    return msgspec.structs.replace(known, **changed) if changed else recipient


def drop_token(recipient: Recipient, token: str) -> Recipient:
    """Without the device whose token the provider called dead; the same object if there is none."""
    kept = tuple(d for d in recipient.devices if d.token != token)
    return recipient if len(kept) == len(recipient.devices) else msgspec.structs.replace(recipient, devices=kept)


def device_for(recipient: Recipient, action: str, device_id: str) -> Device:
    """Where a push goes: what is shown, to the device set last, of which there must be one; what replaces or takes away
    what `device_id` shows, to that one while it is the user's."""
    goes_on = () if action == "show" else (d for d in recipient.devices if d.id == device_id)
    return next(iter(goes_on), recipient.devices[-1])


def _changes(known: Recipient, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
    match kind:
        case "stage_changed":
            return {"stage": payload["to"]}
        case "activity_changed":
            return {"activity": payload["to"]}
        case "cohort_entered" | "cohort_exited":
            return _cohort(known, kind == "cohort_entered", payload["relation"], payload["city_id"])
        case "segment_entered":
            return {"segments": tuple(sorted({*known.segments, payload["segment"]}))}
        case "segment_exited":
            return {"segments": tuple(s for s in known.segments if s != payload["segment"])}
        case "device_set":
            return {"devices": _with_device(known.devices, Device(**payload["device"]))}
        case "device_removed":
            return {"devices": tuple(d for d in known.devices if d.id != payload["device_id"])}
        case "profile_set":
            return {name: payload[name] for name in ("locale", "timezone") if payload.get(name) is not None}
        case "assignment_set":
            return {"assignment_id": payload["assignment_id"]}
        case "consent_set":
            return {"push_consent": payload["push"]} if payload.get("push") is not None else {}
        case _:
            return {}


def _cohort(known: Recipient, entered: bool, relation: str, city_id: int) -> dict[str, Any]:
    if relation == "default":
        if entered:
            return {"default_city": city_id}
        # The exit from the old default may follow the entry into the new one.
        return {"default_city": None} if known.default_city == city_id else {}
    if relation == "added":
        rest = set(known.added) - {city_id}
        return {"added": tuple(sorted(rest | {city_id} if entered else rest))}
    return {}


def _with_device(devices: tuple[Device, ...], device: Device) -> tuple[Device, ...]:
    """The device comes last; it takes the place of one with its id, and of one with its token (a phone that
    was handed a new id keeps its token, and must not be pushed to twice)."""
    others = [d for d in devices if d.id != device.id and d.token != device.token]
    return (*others, device)[-MAX_DEVICES:]
