"""Which cities a user searched or added, how often and when last: ten bytes per city, in the order they came in.

Per city the second of the last visit (four bytes), the city (four) and the count (two; 65 535: that or more), most
significant byte first. What is decided is decided by the second that is kept, never by the millisecond that came.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

import msgspec

_ENTRY = Struct(">IIH")
ENTRY_BYTES = _ENTRY.size
_CITY_AT = 4
MAX_CITIES = 8
_SECONDS = tuple(Struct(">" + "I6x" * cities) for cities in range(MAX_CITIES + 1))
MOST_COUNTED = 65_535


class Visit(msgspec.Struct, frozen=True, gc=False):
    """A city and its visits so far. `last_at`: milliseconds of a whole second."""

    city_id: int
    count: int
    last_at: int


def visits(visited: bytes) -> list[Visit]:
    return [Visit(city_id, count, second * 1000) for second, city_id, count in _ENTRY.iter_unpack(visited)]


def packed(several: Iterable[Visit]) -> bytes:
    return b"".join(_ENTRY.pack(v.last_at // 1000, v.city_id, min(v.count, MOST_COUNTED)) for v in several)


def whole_second(at: int) -> int:
    """The moment as it will be kept."""
    return at - at % 1000


def find(visited: bytes, city_id: int) -> int:
    """Where the city's entry begins; -1 if it has none."""
    needle = city_id.to_bytes(4, "big")
    at = visited.find(needle)
    while at >= 0:
        if at % ENTRY_BYTES == _CITY_AT:
            return at - _CITY_AT
        at = visited.find(needle, at + 1)
    return -1


def appended(visited: bytes, city_id: int, at: int) -> bytes:
    return visited + _ENTRY.pack(at // 1000, city_id, 1)


def touched(visited: bytes, entry: int, at: int) -> bytes:
    """With one more visit of the city whose entry begins at `entry`."""
    second, city_id, count = _ENTRY.unpack_from(visited, entry)
    again = _ENTRY.pack(max(second, at // 1000), city_id, min(count + 1, MOST_COUNTED))
    return visited[:entry] + again + visited[entry + ENTRY_BYTES :]


def without(visited: bytes, entry: int) -> bytes:
    return visited[:entry] + visited[entry + ENTRY_BYTES :]


def oldest_at(visited: bytes) -> int:
    """When the city longest unvisited was visited last; there is at least one."""
    second: int = min(_SECONDS[len(visited) // ENTRY_BYTES].unpack(visited))
    return second * 1000


def oldest(visited: bytes) -> int:
    """Where the entry of the city longest unvisited begins; of several the one with the smallest id."""
    _, city_id, _ = min(_ENTRY.iter_unpack(visited))
    return find(visited, city_id)


def city_of(visited: bytes, entry: int) -> int:
    _, city_id, _ = _ENTRY.unpack_from(visited, entry)
    return int(city_id)
