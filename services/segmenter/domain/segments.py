"""Which segments a user belongs to at a moment, and when time alone will change that."""

from __future__ import annotations

from services.segmenter.domain.compiled import DAY_MS, Compiled, Measured
from services.segmenter.domain.measures import reached, within
from services.segmenter.domain.state import NEVER_SHOPPED, Hot
from shared.contracts.rules import Segment


def memberships(hot: Hot, moment: int, rules: Compiled) -> tuple[str, ...]:
    """The segments of the user at `moment`, sorted."""
    plain = rules.memberships(hot.stage, hot.activity)
    if not rules.measured:
        return plain
    return tuple(sorted([*plain, *(one.segment.id for one in rules.measured if belongs(one, hot, moment))]))


def belongs(one: Measured, hot: Hot, moment: int) -> bool:
    """Whether every condition holds at `moment`, which lies behind all that the user did."""
    segment = one.segment
    if (segment.stage and hot.stage not in segment.stage) or (
        segment.activity and hot.activity not in segment.activity
    ):
        return False
    shop = hot.shop or NEVER_SHOPPED
    if segment.viewed is not None:
        seen, least = shop.viewed_at, segment.viewed.least
        if len(seen) < least or seen[least - 1] + segment.viewed.days * DAY_MS <= moment:
            return False
    since_order = moment - shop.last_order_at if shop.last_order_at >= 0 else None
    if segment.ordered_days and (since_order is None or since_order >= segment.ordered_days * DAY_MS):
        return False
    if segment.not_ordered_days and since_order is not None and since_order < segment.not_ordered_days * DAY_MS:
        return False
    return reached(hot, one.least) and within(hot, one.most)


def next_flip(hot: Hot, moment: int, rules: Compiled) -> int | None:
    """The first moment behind `moment` at which the user enters or leaves a segment if nothing happens."""
    first: int | None = None
    for one in rules.timed:
        inside = one.segment.id in hot.segments
        for at in _ends(one.segment, hot):
            if at > moment and (first is None or at < first) and belongs(one, hot, at) != inside:
                first = at
    return first


def _ends(segment: Segment, hot: Hot) -> list[int]:
    """Where a span of the segment runs out, soonest first."""
    shop = hot.shop or NEVER_SHOPPED
    found = []
    if segment.viewed is not None and len(shop.viewed_at) >= segment.viewed.least:
        found.append(shop.viewed_at[segment.viewed.least - 1] + segment.viewed.days * DAY_MS)
    if shop.last_order_at >= 0:
        found += [
            shop.last_order_at + days * DAY_MS for days in (segment.ordered_days, segment.not_ordered_days) if days
        ]
    return sorted(found)
