"""Whether a message id was seen before: a ring of the user's last 32, each 48-bit hash and hour.

An id younger than 24 h that leaves the ring has to be kept elsewhere (it is "spilled"), so that the
promise holds: exact for the last 32 and for everything within 24 h of received time.
"""

from __future__ import annotations

SLOTS = 32
_WIDTH = 8
_HOURS = 65_536
KEEP_HOURS = 25
"""A spilled id counts for 24 h and the rest of its hour."""


def contains(ring: bytes, message_hash: int) -> bool:
    needle = message_hash.to_bytes(6, "big")
    at = ring.find(needle)
    while at >= 0:
        if at % _WIDTH == 0:
            return True
        at = ring.find(needle, at + 1)
    return False


def add(ring: bytes, message_hash: int, hour: int) -> tuple[bytes, tuple[int, int] | None]:
    """The ring with the id added, and the (hash, hour) that had to leave while younger than 24 h."""
    entry = message_hash.to_bytes(6, "big") + (hour % _HOURS).to_bytes(2, "big")
    if len(ring) < SLOTS * _WIDTH:
        return ring + entry, None
    leaving_hash = int.from_bytes(ring[:6], "big")
    age = (hour - int.from_bytes(ring[6:8], "big")) % _HOURS
    # an upload replayed with an older time wraps to a huge age; it is then kept, which is the safe side
    if age >= KEEP_HOURS and age < _HOURS // 2:
        return ring[_WIDTH:] + entry, None
    return ring[_WIDTH:] + entry, (leaving_hash, hour if age >= _HOURS // 2 else hour - age)


def needs_spill(spilled_hour: int, hour: int) -> bool:
    """Whether ids of this user that left the ring may still count at `hour`."""
    return spilled_hour > 0 and hour - spilled_hour < KEEP_HOURS
