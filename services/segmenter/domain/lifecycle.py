"""How far along the journey a user is, and whether they count as customer, repeat, loyal."""

from __future__ import annotations

from services.segmenter.domain.compiled import Compiled
from services.segmenter.domain.measures import reached
from services.segmenter.domain.state import Hot


def next_stage(hot: Hot, rules: Compiled) -> str | None:
    """The stage behind the present one if its thresholds hold; None otherwise. Stages are never lost.

    A stage that the rules no longer know counts as the first.
    """
    if hot.stage not in rules.following:
        return rules.first_stage
    following = rules.following[hot.stage]
    return following.id if following is not None and reached(hot, following.enter) else None


def flags(hot: Hot, rules: Compiled) -> int:
    found = 0
    for bit, thresholds in rules.roles:
        if reached(hot, thresholds):
            found |= bit
    return found
