"""Which cities a user is tied to, and how: default, searched, added — and when a tie ends."""

from __future__ import annotations

from typing import NamedTuple

from services.segmenter.domain.state import Hot
from services.segmenter.domain.visited import (
    ENTRY_BYTES,
    MAX_CITIES,
    appended,
    city_of,
    find,
    oldest,
    oldest_at,
    packed,
    touched,
    visits,
    whole_second,
    without,
)


class Move(NamedTuple):
    """A cohort entered or left."""

    entered: bool
    relation: str
    city_id: int


def set_default(hot: Hot, city_id: int) -> list[Move]:
    if hot.default_city == city_id:
        return []
    moves = [Move(False, "default", hot.default_city)] if hot.default_city else []
    hot.default_city = city_id
    return [*moves, Move(True, "default", city_id)]


def search(hot: Hot, city_id: int, at: int, as_of: int, keep_ms: int) -> list[Move]:
    """Count a search. One so old that it would be forgotten already opens no cohort."""
    if whole_second(at) + keep_ms <= as_of and find(hot.searched, city_id) < 0:
        return []
    hot.searched, moves = _touch(hot.searched, city_id, at, "searched")
    return moves


def add(hot: Hot, city_id: int, at: int) -> list[Move]:
    hot.added, moves = _touch(hot.added, city_id, at, "added")
    return moves


def remove(hot: Hot, city_id: int) -> list[Move]:
    entry = find(hot.added, city_id)
    if entry < 0:
        return []
    hot.added = without(hot.added, entry)
    return [Move(False, "added", city_id)]


def next_expiry(hot: Hot, keep_ms: int) -> int | None:
    """The moment the oldest search is forgotten."""
    return oldest_at(hot.searched) + keep_ms if hot.searched else None


def expire(hot: Hot, moment: int, keep_ms: int) -> list[Move]:
    """Forget the searches that end at `moment`."""
    known = visits(hot.searched)
    hot.searched = packed(v for v in known if v.last_at + keep_ms > moment)
    return [Move(False, "searched", v.city_id) for v in known if v.last_at + keep_ms <= moment]


def forget_searches(hot: Hot) -> list[Move]:
    moves = [Move(False, "searched", v.city_id) for v in visits(hot.searched)]
    hot.searched = b""
    return moves


def forget_all(hot: Hot) -> list[Move]:
    """Leave every cohort: the user withdrew consent to the use of places."""
    moves = [Move(False, "default", hot.default_city)] if hot.default_city else []
    moves += [Move(False, "added", v.city_id) for v in visits(hot.added)]
    hot.default_city, hot.added = 0, b""
    return moves + forget_searches(hot)


def _touch(visited: bytes, city_id: int, at: int, relation: str) -> tuple[bytes, list[Move]]:
    """The cities with one more visit, and who came in and was pushed out by it."""
    entry = find(visited, city_id)
    if entry >= 0:
        return touched(visited, entry, at), []
    moves = [Move(True, relation, city_id)]
    if len(visited) >= MAX_CITIES * ENTRY_BYTES:
        gone = oldest(visited)
        moves.insert(0, Move(False, relation, city_of(visited, gone)))
        visited = without(visited, gone)
    return appended(visited, city_id, at), moves
