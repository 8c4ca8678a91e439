"""Whether a message id was seen before: a ring of the user's last 32, each 48-bit hash and hour.

An id younger than 24 h that leaves the ring has to be kept elsewhere (it is "spilled"), so that the
promise holds: exact for the last 32 and for everything within 24 h of received time.

A ring is seven bytes per id, oldest first: the hash, and the hours since the id before it, 255 for that or more;
then the hour of the newest in four bytes. So the age of the oldest is exact wherever it matters.
"""

from __future__ import annotations

SLOTS = 32
KEEP_HOURS = 25
"""A spilled id counts for 24 h and the rest of its hour."""

_WIDTH = 7
_HOUR = 4
_FULL = SLOTS * _WIDTH
_MOST = 255


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
    newest = int.from_bytes(ring[-_HOUR:], "big") if ring else max(hour, 0)
    gap = kept_gap = 0
    # an upload replayed with an older time counts as come with the newest; it is then kept longer, the safe side
    if hour > newest:
        gap, newest = hour - newest, hour
        kept_gap = min(gap, _MOST)
    end = (message_hash << 40 | kept_gap << 32 | newest).to_bytes(_WIDTH + _HOUR, "big")
    if len(ring) < _FULL:
        return ring[:-_HOUR] + end, None
    age = gap + sum(ring[2 * _WIDTH - 1 : _FULL : _WIDTH])
    evicted = (int.from_bytes(ring[:6], "big"), newest - age) if age < KEEP_HOURS else None
    return ring[_WIDTH:-_HOUR] + end, evicted


def needs_spill(spilled_hour: int, hour: int) -> bool:
    """Whether ids of this user that left the ring may still count at `hour`."""
    return spilled_hour > 0 and hour - spilled_hour < KEEP_HOURS
