"""What thresholds are held against: how a measure is read off a user, and from which fields of the user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter

from services.segmenter.domain.state import NEVER_SHOPPED, Hot, Shop
from services.segmenter.domain.visited import ENTRY_BYTES
from shared.contracts.rules import Measure

Bounds = tuple[tuple[Callable[[Hot], int], int], ...]
"""(how it is read, the least or most it may be), for each measure named."""

_OF_SHOP = frozenset(Shop.__struct_fields__)


def bounds(named: Mapping[Measure, int]) -> Bounds:
    return tuple((_reader(name), bound) for name, bound in named.items())


def reached(hot: Hot, least: Bounds) -> bool:
    """Whether every threshold is reached; none at all always are."""
    for read, bound in least:  # noqa: SIM110 - a generator would cost twice as much here
        if read(hot) < bound:
            return False
    return True


def within(hot: Hot, most: Bounds) -> bool:
    """Whether no bound is passed; none at all never are."""
    return all(read(hot) <= bound for read, bound in most)


def seen_by(*names: str) -> Callable[[Hot], object]:
    """What these measures and fields are read from: where it is equal for two users, so is each of them."""
    fields: set[str] = set()
    for name in names:
        fields.update(_FIELDS.get(name, ("shop",) if name in _OF_SHOP else (name,)))
    return attrgetter(*sorted(fields))


def named(several: Iterable[Mapping[Measure, int]]) -> set[str]:
    return {name for one in several for name in one}


def _searched(hot: Hot) -> int:
    return len(hot.searched) // ENTRY_BYTES


def _added(hot: Hot) -> int:
    return len(hot.added) // ENTRY_BYTES


def _cities(hot: Hot) -> int:
    return (len(hot.searched) + len(hot.added)) // ENTRY_BYTES + (1 if hot.default_city else 0)


def _average_order(hot: Hot) -> int:
    return hot.revenue // hot.orders if hot.orders else 0


_READERS: dict[str, Callable[[Hot], int]] = {
    "searched": _searched,
    "added": _added,
    "cities": _cities,
    "average_order": _average_order,
}
_FIELDS = {
    "searched": ("searched",),
    "added": ("added",),
    "cities": ("searched", "added", "default_city"),
    "average_order": ("revenue", "orders"),
}
"""Of the measures that are no field themselves."""


def _reader(name: Measure) -> Callable[[Hot], int]:
    if name in _READERS:
        return _READERS[name]
    read: Callable[[Hot | Shop], int] = attrgetter(name)
    if name in _OF_SHOP:
        return lambda hot: read(hot.shop or NEVER_SHOPPED)
    return read
