"""After how long a pause someone comes back: the days and months on which each user was active, counted by that pause.

A day counts once per user, under the days since the active day before it: "first" where there was none, at most
`LONG`. So the counts of a day say how many were active (all of them), new ("first") and there the day before, too
("1"); and how many were active within the last seven or thirty days, without looking at a user (see
`reports.within`). Months likewise. What is told late moves the pause of the day after it as well, so that the counts
are those of the set of days, in whatever order they were told.

Exact within bounds: a day counts if it lies less than 64 days before the newest one known by then, a month less than
62 months; what lies further back is in no count.
"""

from __future__ import annotations

from datetime import date
from functools import lru_cache
from typing import NamedTuple

from services.segmenter.domain.state import Daily, Hot

ACTIVE, MONTHS = "active", "month"
"""Kinds of these counts; a month's are kept on its first day."""
FIRST = 0
LONG = 31
_EPOCH = date(1970, 1, 1).toordinal()
_LOW = 2**64 - 1


class _Kept(NamedTuple):
    """What is remembered of one user: `width` bits, the highest of them for all that lies further back. A unit counts
    if it lies less than `late` before the newest, so that pauses before it up to `most` are known."""

    width: int
    late: int
    most: int


_DAYS = _Kept(96, 64, LONG)
_MONTHS = _Kept(64, 62, 2)


NAMES = ("first", *map(str, range(1, LONG + 1)))
"""Counts by pause."""


def come(hot: Hot, day: int) -> list[Daily]:
    """Note that the user was active on `day` (days since 1970), on a fresh copy of `hot`; what that moves."""
    month, newest = month_of(day), hot.last_day
    moved: list[Daily] = []
    found = _mark(hot.bitmap | hot.older_days << 64, newest, day, _DAYS)
    if found is not None:
        bits, hot.last_day, pauses = found
        hot.bitmap, hot.older_days = bits & _LOW, bits >> 64
        hot.active_days += 1
        moved = [(on, ACTIVE, NAMES[pause], by) for on, pause, by in pauses]
    found = _mark(hot.months, month_of(newest), month, _MONTHS)
    if found is not None:
        hot.months, _, pauses = found
        moved += [(first_day(on), MONTHS, NAMES[pause], by) for on, pause, by in pauses]
    return moved


def left(hot: Hot) -> list[Daily]:
    """What it moves that the user's days and months are counted no longer, as far as they are known exactly."""
    moved = [(on, ACTIVE, NAMES[pause], -1) for on, pause in _pauses(_days(hot), hot.last_day, _DAYS)]
    month = month_of(hot.last_day)
    return moved + [(first_day(on), MONTHS, NAMES[pause], -1) for on, pause in _pauses(hot.months, month, _MONTHS)]


def unite(hot: Hot, other: Hot) -> list[Daily]:
    """Note on `hot`, a fresh copy, the days and months of `other`, which are counted no longer, as well; what that
    moves. A day of both counts once."""
    if not other.bitmap:
        return []
    newest = max(hot.last_day, other.last_day)
    month, other_month, newest_month = (month_of(day) for day in (hot.last_day, other.last_day, newest))
    days, both, pauses = _united((_days(hot), hot.last_day), (_days(other), other.last_day), newest, _DAYS)
    moved = [(on, ACTIVE, NAMES[pause], by) for on, pause, by in pauses]
    hot.months, _, pauses = _united((hot.months, month), (other.months, other_month), newest_month, _MONTHS)
    moved += [(first_day(on), MONTHS, NAMES[pause], by) for on, pause, by in pauses]
    hot.bitmap, hot.older_days, hot.last_day = days & _LOW, days >> 64, newest
    hot.active_days += other.active_days - both
    return moved


def came_back_on(hot: Hot, pause: int, since: int) -> int | None:
    """The newest active day from `since` on that follows a pause of at least so many days."""
    bits, back = _days(hot), 0
    while bits and hot.last_day - back >= since:
        earlier = bits >> back + 1
        if bits >> back & 1 and earlier and (earlier & -earlier).bit_length() >= pause:
            return hot.last_day - back
        back += 1
    return None


def _days(hot: Hot) -> int:
    return hot.bitmap | hot.older_days << 64


def _pauses(bits: int, newest: int, kept: _Kept) -> list[tuple[int, int]]:
    """Each unit whose pause is known exactly, and that pause."""
    return [(newest - back, _pause(bits, back, kept)) for back in _exact(bits, kept)]


def _exact(bits: int, kept: _Kept) -> list[int]:
    return [back for back in range(kept.late) if bits >> back & 1]


def _pause(bits: int, back: int, kept: _Kept) -> int:
    earlier = bits >> back + 1
    return min((earlier & -earlier).bit_length(), kept.most) if earlier else FIRST


def _united(
    own: tuple[int, int], other: tuple[int, int], newest: int, kept: _Kept
) -> tuple[int, int, list[tuple[int, int, int]]]:
    """Of two (bits, newest): the bits of both behind `newest`, how many units they share, and (unit, pause, ±1) of what
    that moves where the other's were counted no longer."""
    top = 1 << kept.width - 1
    (bits, at), (more, more_at) = own, other
    shift, more_shift = (newest - at if bits else 0), newest - more_at
    wide = bits << shift | more << more_shift
    mine = {back + shift for back in _exact(bits, kept)}
    # what was counted of them, and is not known exactly any more, stays counted where it was
    came = {back for n in _exact(more, kept) if not bits << shift >> (back := n + more_shift) & 1}
    pauses = [(unit, pause, -1) for unit, pause in _pauses(bits, at, kept)]
    pauses += [(newest - back, _pause(wide, back, kept), 1) for back in sorted(mine | came)]
    both = ((bits & top - 1) << shift & (more & top - 1) << more_shift).bit_count()
    return wide & top - 1 | (top if wide >= top else 0), both, pauses


def _mark(bits: int, newest: int, here: int, kept: _Kept) -> tuple[int, int, list[tuple[int, int, int]]] | None:
    """`bits` (bit n: n units before `newest`) with the unit `here`, and (unit, pause, ±1) of what that moves; None
    where it changes nothing."""
    if not bits:
        return 1, here, [(here, FIRST, 1)]
    back = newest - here
    top = 1 << kept.width - 1
    if back < 0:
        moved = bits << min(-back, kept.width)
        return moved & (top - 1) | (top if moved >= top else 0) | 1, here, [(here, min(-back, kept.most), 1)]
    if back >= kept.late or bits >> back & 1:
        return None
    after = (bits & (1 << back) - 1).bit_length() - 1
    earlier = bits >> back + 1
    pause = (earlier & -earlier).bit_length()
    pause_after = back - after + pause if pause else FIRST
    following = newest - after
    return (
        bits | 1 << back,
        newest,
        [
            (here, min(pause, kept.most), 1),
            (following, min(pause_after, kept.most), -1),
            (following, min(back - after, kept.most), 1),
        ],
    )


@lru_cache(maxsize=4096)
def month_of(day: int) -> int:
    """Months since January of the year 0."""
    on = date_of(day)
    return on.year * 12 + on.month - 1


@lru_cache(maxsize=1024)
def first_day(month: int) -> int:
    """The first day of a month, in days since 1970."""
    return day_of(date(month // 12, month % 12 + 1, 1))


def date_of(day: int) -> date:
    return date.fromordinal(_EPOCH + day)


def day_of(on: date) -> int:
    return on.toordinal() - _EPOCH
