"""Which days or months a report is of. Pure: the present is an argument."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from services.segmenter.domain.compiled import DAY_MS
from services.segmenter.domain.returns import date_of, day_of, first_day, month_of

MOST = 1000
FIRST_YEAR = 1970
_USUAL = {"day": 30, "month": 12}
_FORM = re.compile(r"(\d{4})-(\d\d)(?:-(\d\d))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Periods:
    """`starts`: the first day of each period, in days since 1970, without a gap; `end` is the day behind the last."""

    by: str
    starts: tuple[int, ...]
    end: int

    def sums(self, by_day: Mapping[int, int]) -> list[int]:
        """The sum over each period, and over all that lies behind the last."""
        found = [0] * (len(self.starts) + 1)
        for day, count in by_day.items():
            if day >= self.starts[0]:
                found[bisect_right(self.starts, day) - 1 if day < self.end else -1] += count
        return found

    def before(self) -> int:
        """The first day of the period before the first."""
        return self.starts[0] - 1 if self.by == "day" else first_day(month_of(self.starts[0]) - 1)

    def name(self, start: int) -> str:
        on = date_of(start).isoformat()
        return on if self.by == "day" else on[:7]


def spanned(first: str, last: str, by: str, now_ms: int) -> Periods:
    """The periods from `first` to `last`, both included, up to the present one; ValueError, with what to do, where
    there are none. Nothing said of `last` is now, of `first` the last 30 days or 12 months, of `by` days."""
    by = by or "day"
    if by not in _USUAL:
        raise ValueError(f"by is {by!r}; it is day or month")
    today = now_ms // DAY_MS
    until = min(_day("to", last, end=True), today) if last else today
    if by == "day":
        begin = _day("from", first) if first else until - _USUAL[by] + 1
        count = until - begin + 1
    else:
        begin_month = month_of(_day("from", first)) if first else month_of(until) - _USUAL[by] + 1
        count = month_of(until) - begin_month + 1
    if count <= 0:
        raise ValueError(f"there is no {by} from {first or 'there'} to {last or 'now'} that has begun yet")
    if count > MOST:
        raise ValueError(f"from {first} to {last or 'now'} are {count} {by}s; ask for {MOST} at most")
    if by == "day":
        return Periods(by, tuple(range(begin, until + 1)), until + 1)
    starts = [first_day(begin_month + n) for n in range(count + 1)]
    return Periods(by, tuple(starts[:-1]), starts[-1])


def _day(what: str, told: str, end: bool = False) -> int:
    """The day that is meant; of a month alone the first, or the last."""
    found = _FORM.fullmatch(told)
    try:
        if found is None or int(found[1]) < FIRST_YEAR:
            raise ValueError
        on = day_of(date(int(found[1]), int(found[2]), int(found[3] or 1)))
    except ValueError:
        raise ValueError(f"{what} is {told!r}; it is a day such as 2026-01-31 or a month such as 2026-01") from None
    return first_day(month_of(on) + 1) - 1 if end and not found[3] else on
