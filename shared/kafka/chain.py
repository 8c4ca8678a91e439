"""Whether a numbered record is to be applied, is a repeat, or shows that records are missing."""

from __future__ import annotations

from typing import Literal

Link = Literal["apply", "repeat", "gap"]


def judge(last: int, prev: int, number: int) -> Link:
    """`number` follows `prev` in its chain; `last` is the greatest applied.

    A writer that resumed further back numbers again what was written: `prev <= last < number` is
    therefore a good link even where `prev < last`.
    """
    if number <= last:
        return "repeat"
    if prev > last:
        return "gap"
    return "apply"
