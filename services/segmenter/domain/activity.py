"""How the pulse of a user changes: by acting, by leaving, by the mere passing of time."""

from __future__ import annotations

from services.segmenter.domain.compiled import Compiled
from services.segmenter.domain.state import Hot

BY_ACTING = {
    "new": "new",
    "active": "active",
    "at_risk": "active",
    "inactive": "reactivated",
    "lapsed": "reactivated",
    "reactivated": "reactivated",
    "uninstalled": "reactivated",
}
"""What an activity makes of each value. A user's very first activity makes `new`, whatever was before."""

BY_TIME = {
    "new": (("settled", "active"), ("at_risk", "at_risk")),
    "active": (("at_risk", "at_risk"),),
    "at_risk": (("inactive", "inactive"),),
    "inactive": (("lapsed", "lapsed"),),
    "lapsed": (),
    "reactivated": (("settled", "active"), ("at_risk", "at_risk")),
    "uninstalled": (),
}
"""Which spans run out in each value, and what follows; the earlier one counts, on a tie the first."""


def next_change(hot: Hot, rules: Compiled) -> tuple[int, str] | None:
    """The moment the pulse changes if nothing happens, and to what; None if it never will."""
    if hot.last_activity_at < 0:
        return None
    found: tuple[int, str] | None = None
    for span, to in BY_TIME[hot.activity]:
        if span == "settled":
            at = hot.activity_at + (rules.new_ms if hot.activity == "new" else rules.reactivated_ms)
        elif span == "at_risk":
            at = hot.last_activity_at + rules.at_risk_ms
        elif span == "inactive":
            at = hot.last_activity_at + rules.inactive_ms
        else:
            at = hot.last_activity_at + rules.lapsed_ms
        # a rules version with shorter spans makes them due now, not before the value was entered
        at = max(at, hot.activity_at)
        if found is None or at < found[0]:
            found = (at, to)
    return found


def after_acting(hot: Hot, first: bool, as_of: int, rules: Compiled) -> str:
    """The pulse once `hot.last_activity_at` has been raised by an activity.

    One so old that the user would be inactive all the same revives nobody, though they have then not lapsed yet; nor
    does one from before the app was uninstalled.
    """
    if first:
        return "new"
    if hot.activity == "uninstalled" and hot.last_activity_at <= hot.activity_at:
        return hot.activity
    if hot.activity in ("inactive", "lapsed") and as_of - hot.last_activity_at >= rules.inactive_ms:
        return hot.activity if as_of - hot.last_activity_at >= rules.lapsed_ms else "inactive"
    if hot.activity == "at_risk" and as_of - hot.last_activity_at >= rules.at_risk_ms:
        return hot.activity
    return BY_ACTING[hot.activity]
