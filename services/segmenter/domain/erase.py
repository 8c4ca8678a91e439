"""What leaves with a user who is erased: every cohort and segment, and one from each count of who is here now.

Counts of what happened (sessions, activity, orders, revenue) are of days, not of persons: they stay.
"""

from __future__ import annotations

import copy

from services.segmenter.domain import cohorts
from services.segmenter.domain.compiled import DAY_MS
from services.segmenter.domain.standing import RATE
from services.segmenter.domain.state import ROLES, Change, Daily, Hot
from shared.contracts.changes import BY_ERASURE, USER_ERASED


def leave(hot: Hot | None, at: int, erasure_id: str) -> tuple[list[Change], list[Daily]]:
    """The last changes of a user who is erased at `at`, and what moves among the counts of that day.

    `user_erased` comes last, and also for one who is not known: others may keep something of them.
    """
    changes: list[Change] = []
    daily: list[Daily] = []
    if hot is not None and not hot.merged_into:
        changes += [Change("segment_exited", {"segment": s}, at, BY_ERASURE, erasure_id) for s in hot.segments]
        changes += [
            Change("cohort_exited", {"relation": move.relation, "city_id": move.city_id}, at, BY_ERASURE, erasure_id)
            for move in cohorts.forget_all(copy.copy(hot))
        ]
        day = at // DAY_MS
        daily = [(day, "users", "all", -1), *((day, RATE, role, -1) for bit, role in ROLES if hot.flags & bit)]
    return [*changes, Change(USER_ERASED, {}, at, BY_ERASURE, erasure_id)], daily
