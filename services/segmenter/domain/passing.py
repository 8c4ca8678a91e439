"""What time and new rules make of a user, and what follows from whatever happened to them."""

from __future__ import annotations

from msgspec.structs import replace

from services.segmenter.domain import activity, cohorts, lifecycle, segments, standing
from services.segmenter.domain.compiled import DAY_MS, Compiled, InForce
from services.segmenter.domain.state import Change, Daily, Hot
from shared.process.clock import iso

NEVER = -1
"""The moment of what is not due at all."""
UNBORN = ""
"""The activity of a user within the very event that makes them known."""


def born(at: int, cause_type: str, cause: str, rules: Compiled) -> tuple[Hot, list[Change], list[Daily]]:
    """A user nothing is known of yet."""
    first = rules.first_stage
    hot = Hot(first, at, UNBORN, at, at, at, rules_version=rules.version)
    changes = [Change("stage_changed", {"from": None, "to": first}, at, cause_type, cause)]
    return hot, changes, [(at // DAY_MS, "users", "all", 1)]


def tick(hot: Hot, as_of: int, rules: InForce) -> tuple[Hot, list[Change], list[Daily]]:
    """The user at `as_of` under the shard's rules, if nothing else happened (the same object if nothing changed), the
    changes, and what moved among the counts of days. A newer rules version is entered at the moment the shard did,
    however late it is noticed."""
    if hot.rules_version == rules.current.version and not 0 <= hot.due_at <= as_of:
        return hot, [], []
    if hot.merged_into:
        return hot, [], []
    # nothing changed since the user was looked at last, for `due_at` is the first moment at which anything does
    moment = min(hot.due_at - 1, as_of) if hot.due_at >= 0 else as_of
    hot = replace(hot)
    changes: list[Change] = []
    daily: list[Daily] = []
    before: Compiled | None = None
    for since, version in rules.history:
        if version.version > hot.rules_version:
            if before is not None:
                advance(hot, min(moment, since), since, before, changes, daily)
            hot.rules_version, moment = version.version, since
            settle(hot, since, since, "rules", str(version.version), version, changes, daily)
        before = version
    advance(hot, moment, as_of, rules.current, changes, daily)
    return hot, changes, daily


def advance(hot: Hot, moment: int, as_of: int, rules: Compiled, changes: list[Change], daily: list[Daily]) -> None:
    """Let every moment behind `moment`, where the user stands, up to `as_of` come, in order; then note the next one."""
    while True:
        pulse = activity.next_change(hot, rules)
        expiry = cohorts.next_expiry(hot, rules.searched_ms)
        flip = segments.next_flip(hot, moment, rules) if rules.timed else None
        due = pulse[0] if pulse is not None else NEVER
        if expiry is not None and (expiry < due or due == NEVER):
            due = expiry
        if flip is not None and (flip < due or due == NEVER):
            due = flip
        hot.due_at = due
        if not 0 <= due <= as_of:
            return
        cause = iso(due)
        if expiry == due:
            report(cohorts.expire(hot, due, rules.searched_ms), due, "tick", cause, changes)
        if pulse is not None and pulse[0] == due:
            set_activity(hot, pulse[1], due, "tick", cause, changes)
        moment = max(moment, due)
        settle(hot, due, moment, "tick", cause, rules, changes, daily)


def settle(
    hot: Hot,
    at: int,
    moment: int,
    cause_type: str,
    cause: str,
    rules: Compiled,
    changes: list[Change],
    daily: list[Daily],
    stood: Hot | None = None,
) -> None:
    """Draw the conclusions: stage, who counts as customer, segments. What happened at `at` is judged at `moment`.

    `stood`: the user as brought to `moment` under the same rules, before it happened (None: not known). What is
    concluded from nothing that changed since then is not concluded again."""
    while (to := lifecycle.next_stage(hot, rules)) is not None:
        changes.append(Change("stage_changed", {"from": hot.stage, "to": to}, at, cause_type, cause))
        hot.stage, hot.stage_at = to, at
    if stood is None or rules.roles_see(hot) != rules.roles_see(stood):
        flags = lifecycle.flags(hot, rules)
        if flags != hot.flags:
            daily += standing.turned(hot, flags, at, cause_type == "rules", rules)
            hot.flags = flags
    if stood is not None and rules.segments_see(hot) == rules.segments_see(stood):
        return
    now = segments.memberships(hot, moment, rules)
    if now != hot.segments:
        left = [s for s in hot.segments if s not in now]
        came = [s for s in now if s not in hot.segments]
        changes.extend(Change("segment_exited", {"segment": s}, at, cause_type, cause) for s in left)
        changes.extend(Change("segment_entered", {"segment": s}, at, cause_type, cause) for s in came)
        hot.segments = now


def set_activity(hot: Hot, to: str, at: int, cause_type: str, cause: str, changes: list[Change]) -> None:
    if to == hot.activity:
        return
    changes.append(Change("activity_changed", {"from": hot.activity or None, "to": to}, at, cause_type, cause))
    hot.activity, hot.activity_at = to, at


def report(moves: list[cohorts.Move], at: int, cause_type: str, cause: str, changes: list[Change]) -> None:
    for move in moves:
        kind = "cohort_entered" if move.entered else "cohort_exited"
        changes.append(Change(kind, {"relation": move.relation, "city_id": move.city_id}, at, cause_type, cause))
