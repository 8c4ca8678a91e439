"""Which cities a user is tied to, and how: default, searched, added — and when a tie ends."""

from __future__ import annotations

from typing import NamedTuple

from services.segmenter.domain.state import MAX_CITIES, Hot, Visit


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
    known = _find(hot.searched, city_id)
    if known is None and at + keep_ms <= as_of:
        return []
    hot.searched, moves = _touch(hot.searched, known, city_id, at, "searched")
    return moves


def add(hot: Hot, city_id: int, at: int) -> list[Move]:
    hot.added, moves = _touch(hot.added, _find(hot.added, city_id), city_id, at, "added")
    return moves


def remove(hot: Hot, city_id: int) -> list[Move]:
    if _find(hot.added, city_id) is None:
        return []
    hot.added = tuple(v for v in hot.added if v.city_id != city_id)
    return [Move(False, "added", city_id)]


def next_expiry(hot: Hot, keep_ms: int) -> int | None:
    """The moment the oldest search is forgotten."""
    return min(v.last_at for v in hot.searched) + keep_ms if hot.searched else None


def expire(hot: Hot, moment: int, keep_ms: int) -> list[Move]:
    """Forget the searches that end at `moment`."""
    gone = [v for v in hot.searched if v.last_at + keep_ms <= moment]
    hot.searched = tuple(v for v in hot.searched if v.last_at + keep_ms > moment)
    return [Move(False, "searched", v.city_id) for v in gone]


def forget_searches(hot: Hot) -> list[Move]:
    moves = [Move(False, "searched", v.city_id) for v in hot.searched]
    hot.searched = ()
    return moves


def forget_all(hot: Hot) -> list[Move]:
    """Leave every cohort: the user withdrew consent to the use of places."""
    moves = [Move(False, "default", hot.default_city)] if hot.default_city else []
    moves += [Move(False, "added", v.city_id) for v in hot.added]
    hot.default_city, hot.added = 0, ()
    return moves + forget_searches(hot)


def _find(visits: tuple[Visit, ...], city_id: int) -> Visit | None:
    return next((v for v in visits if v.city_id == city_id), None)


def _touch(
    visits: tuple[Visit, ...], known: Visit | None, city_id: int, at: int, relation: str
) -> tuple[tuple[Visit, ...], list[Move]]:
    if known is not None:
        newer = Visit(city_id, known.count + 1, max(known.last_at, at))
        return tuple(newer if v is known else v for v in visits), []
    moves = [Move(True, relation, city_id)]
    if len(visits) >= MAX_CITIES:
        oldest = min(visits, key=lambda v: (v.last_at, v.city_id))
        visits = tuple(v for v in visits if v is not oldest)
        moves.insert(0, Move(False, relation, oldest.city_id))
    return (*visits, Visit(city_id, 1, at)), moves
