"""How much has this user been sent already: caps, the gap between pushes, repeats, and when to stop.

Everything is judged by when a push was last attempted. One that is still on its way counts as `PENDING`: it may go out
at any later moment, so it lies in every window that has not ended. Therefore a cap holds for the attempts themselves,
however long one waited: take those within one window, and of them the one that was planned last. When it was planned
each of the others was pending, or had been attempted inside that window, so it was counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec

from shared.contracts.rules import Campaign, Cap, Limits

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
PENDING = 1 << 62
SUNSET_DAYS = 365


class Past(msgspec.Struct, frozen=True, gc=False):
    """A push to the user that counts: when it was attempted last (`PENDING`: not certain yet)."""

    message_id: str
    at: int
    category: str
    content_key: str
    opened: bool = False


def horizon_days(limits: Limits, campaigns: Iterable[Campaign]) -> int:
    """How far back the past matters; 0 where nothing asks for it."""
    spans = [max((c.no_repeat_days for c in campaigns), default=0)]
    spans += [32 if cap.window != "rolling" else cap.hours // 24 + 1 for cap in limits.caps]
    if limits.gap_minutes:
        spans.append(limits.gap_minutes // 1440 + 1)
    if limits.sunset_pushes:
        spans.append(SUNSET_DAYS)
    return max(spans)


def binds(cap: Cap, category: str) -> bool:
    return not cap.category or cap.category == category


def window_start(cap: Cap, zone: ZoneInfo, now_ms: int) -> int:
    """The first instant of the window that ends now: what was attempted at it or later counts."""
    if cap.window == "rolling":
        return now_ms - cap.hours * HOUR_MS + 1
    local = datetime.fromtimestamp(now_ms / 1000, zone)
    day = local.date()
    if cap.window == "week":
        day -= timedelta(days=day.weekday())
    elif cap.window == "month":
        day = day.replace(day=1)
    return round(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp() * 1000)


def used(cap: Cap, past: Sequence[Past], zone: ZoneInfo, now_ms: int) -> int:
    """How many pushes of the window that ends now use the cap up."""
    start = window_start(cap, zone, now_ms)
    return sum(one.at >= start and binds(cap, one.category) for one in past)


def last_at(past: Sequence[Past], now_ms: int) -> int | None:
    """When the user was pushed to last; `now_ms` while a push is on its way."""
    latest = max((one.at for one in past), default=None)
    return None if latest is None else min(latest, now_ms)


def repeats(campaign: Campaign, key: str, past: Sequence[Past], now_ms: int) -> bool:
    """Whether the user was sent the same content or offer within `no_repeat_days`."""
    since = now_ms - campaign.no_repeat_days * DAY_MS
    return campaign.no_repeat_days > 0 and any(one.content_key == key and one.at > since for one in past)


def unanswered(past: Sequence[Past], now_ms: int) -> int:
    """Pushes of the last year since the newest one that the user opened."""
    since = now_ms - SUNSET_DAYS * DAY_MS
    opened = max((one.at for one in past if one.opened), default=-1)
    return sum(one.at > max(since, opened) for one in past)


def content_key(campaign: Campaign, title: str, body: str) -> str:
    """What must not be repeated: the campaign's offer, whoever makes it, or else the very text."""
    said = ("offer", campaign.offer) if campaign.offer else ("text", title, body)
    return hashlib.blake2b("\x1f".join(said).encode(), digest_size=8).hexdigest()
