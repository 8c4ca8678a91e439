"""What an event's context changes in a user's cold part: devices, locale, time zone, app version."""

from __future__ import annotations

import hashlib

import msgspec
from msgspec.structs import replace

from services.segmenter.domain.state import MAX_DEVICES, Cold
from shared.contracts.events import Context, Device

_encode = msgspec.msgpack.Encoder().encode


def digest(context: Context) -> bytes:
    """Eight bytes that tell whether this context was the last one folded in."""
    return hashlib.blake2b(_encode(context), digest_size=8).digest()


def fold(cold: Cold, context: Context) -> tuple[Cold, list[tuple[str, dict[str, object]]]]:
    """The cold part with the context folded in, and (kind, payload) of what changed."""
    changes: list[tuple[str, dict[str, object]]] = []
    devices = cold.devices
    if context.device is not None and context.device not in devices:
        devices, removed = set_device(devices, context.device)
        changes += [("device_removed", {"device_id": d.id}) for d in removed]
        device = context.device
        changes.append(("device_set", {"device": {"id": device.id, "type": device.type, "token": device.token}}))
    told = {"locale": context.locale, "timezone": context.timezone, "app_version": context.app_version}
    news = {name: value for name, value in told.items() if value and value != getattr(cold, name)}
    if news:
        changes.append(("profile_set", dict(news)))
    if not changes:
        return cold, []
    return replace(
        cold,
        devices=devices,
        locale=context.locale or cold.locale,
        timezone=context.timezone or cold.timezone,
        app_version=context.app_version or cold.app_version,
    ), changes


def set_device(devices: tuple[Device, ...], device: Device) -> tuple[tuple[Device, ...], list[Device]]:
    """The devices with this one as the newest, and those that had to leave for it."""
    kept = [d for d in devices if d.id != device.id and d.token != device.token]
    # a token moved to another device id leaves the old id
    removed = [d for d in devices if d.id != device.id and d.token == device.token]
    while len(kept) >= MAX_DEVICES:
        removed.append(kept.pop(0))
    return (*kept, device), removed
