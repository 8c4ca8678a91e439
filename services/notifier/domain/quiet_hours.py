"""When may a push not be sent by the user's own clock, and when may it again?"""

from __future__ import annotations

from datetime import datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from shared.contracts.rules import QuietHours


@lru_cache(maxsize=1024)
def zone_named(name: str | None, otherwise: str = "UTC") -> ZoneInfo:
    """The time zone of that name; what phones call a zone and is none counts as `otherwise`."""
    for wanted in (name, otherwise):
        try:
            if wanted:
                return ZoneInfo(wanted)
        except (KeyError, ValueError, OSError):
            continue
    return ZoneInfo("UTC")


@lru_cache(maxsize=64)
def clock_time(text: str) -> time:
    """`HH:MM`; ValueError otherwise."""
    if len(text) != 5 or text[2] != ":":
        raise ValueError(f"expected a time of day such as 22:00, not {text!r}")
    return time(int(text[:2]), int(text[3:]))


def quiet_until(quiet: QuietHours, zone: ZoneInfo, now_ms: int) -> int | None:
    """The instant at which the quiet hours that now lies in are over; None outside them.

    They are read off the clock on the user's wall: on the night it is put back an hour may be quiet twice, and where
    their end falls into the hour that is left out, they end within the hour after it.
    """
    if not quiet.from_ and not quiet.to:
        return None
    begin, end = clock_time(quiet.from_), clock_time(quiet.to)
    local = datetime.fromtimestamp(now_ms / 1000, zone)
    if not _within(begin, end, local.time()):
        return None
    for days in (0, 1):
        day = local.date() + timedelta(days=days)
        for fold in (0, 1):
            until = round(datetime.combine(day, end, zone).replace(fold=fold).timestamp() * 1000)
            wall = datetime.fromtimestamp(until / 1000, zone).time()
            if until > now_ms and not _within(begin, end, wall):
                return until
    raise AssertionError(f"quiet hours without an end: {quiet}")  # the check of packs refuses from = to


def _within(begin: time, end: time, wall: time) -> bool:
    return begin <= wall < end if begin <= end else wall >= begin or wall < end
