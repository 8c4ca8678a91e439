"""What one stimulus makes of one user: the heart. Pure, total, no clock.

A stimulus is an accepted event or a tick. Each first brings its user to its own moment (`as_of`), then
acts, then brings what the act made due already. Hence `tick(a); tick(b) = tick(b)` for a <= b, and it does
not matter whether the sweep or the next event notices that a moment has passed.
"""

from __future__ import annotations

import copy
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from services.segmenter.domain import (
    activity,
    cohorts,
    dedup,
    lifecycle,
    orders,
    profile,
    returns,
    segments,
    sessions,
    shop,
    standing,
)
from services.segmenter.domain.compiled import DAY_MS, Compiled, InForce
from services.segmenter.domain.moments import moment_of
from services.segmenter.domain.state import PURPOSES, Change, Cold, Daily, Hot, consenting
from shared.contracts.events import Accepted
from shared.contracts.identifiers import message_hash
from shared.process.clock import iso

HOUR_MS = 3_600_000
UNBORN = ""
"""The activity of a user within the very event that makes them known."""


class Outcome(NamedTuple):
    """The user afterwards. `cold` is None where it did not change; `daily` is what moved among the counts of days;
    `spilled` are (hash, hour) of message ids that left the ring too young; a duplicate changed nothing but time."""

    hot: Hot
    cold: Cold | None
    changes: list[Change]
    daily: list[Daily]
    spilled: tuple[int, int] | None
    duplicate: bool


def needs_cold(hot: Hot | None, event: Accepted, rules: Compiled | None) -> bool:
    """Whether `decide` will look at the cold part. Rules that are not known yet (None) may make it."""
    if rules is None or not orders.SIGNALS.isdisjoint(rules.signals_of(event.name)):
        return True
    return event.context is not None and (hot is None or profile.digest(event.context) != hot.context_digest)


def tick(hot: Hot, as_of: int, rules: InForce) -> tuple[Hot, list[Change], list[Daily]]:
    """The user at `as_of` under the shard's rules, if nothing else happened (the same object if nothing changed), the
    changes, and what moved among the counts of days. A newer rules version is entered at the moment the shard did,
    however late it is noticed."""
    if hot.rules_version == rules.current.version and not 0 <= hot.due_at <= as_of:
        return hot, [], []
    # nothing changed since the user was looked at last, for `due_at` is the first moment at which anything does
    moment = min(hot.due_at - 1, as_of) if hot.due_at >= 0 else as_of
    hot = copy.copy(hot)
    changes: list[Change] = []
    daily: list[Daily] = []
    before: Compiled | None = None
    for since, version in rules.history:
        if version.version > hot.rules_version:
            if before is not None:
                _advance(hot, min(moment, since), since, before, changes, daily)
            hot.rules_version, moment = version.version, since
            _settle(hot, since, since, "rules", str(version.version), version, changes, daily)
        before = version
    _advance(hot, moment, as_of, rules.current, changes, daily)
    return hot, changes, daily


def decide(
    hot: Hot | None,
    cold: Cold | None,
    event: Accepted,
    as_of: int,
    rules: InForce,
    spilled: AbstractSet[int] = frozenset(),
) -> Outcome:
    """Fold one event. `as_of`: the later of its received time and the shard's last tick. `cold` may be
    None unless `needs_cold`. `spilled`: hashes of the user's ids that left the ring within a day."""
    if hot is None:
        at, first = event.occurred_at, rules.current.first_stage
        hot = Hot(first, at, UNBORN, at, at, at, rules_version=rules.current.version)
        changes = [Change("stage_changed", {"from": None, "to": first}, at, "event", event.message_id)]
        daily = [(at // DAY_MS, "users", "all", 1)]
    else:
        hot, changes, daily = tick(hot, as_of, rules)
    number = message_hash(event.message_id)
    if dedup.contains(hot.ring, number) or number in spilled:
        return Outcome(hot, None, changes, daily, None, duplicate=True)
    hot = copy.copy(hot)
    hot.ring, evicted = dedup.add(hot.ring, number, event.received_at // HOUR_MS)
    if evicted is not None:
        hot.spilled_hour = max(hot.spilled_hour, evicted[1])
    changed_cold = _act(hot, cold, event, as_of, rules, changes, daily)
    _settle(hot, event.occurred_at, as_of, "event", event.message_id, rules.current, changes, daily)
    _advance(hot, as_of, as_of, rules.current, changes, daily)
    told = rules.current.awaited.get(event.name)
    # the last row of its event: who waits for it finds the user as the event left them
    if told is not None and _may_be_told(hot, event, rules.current):
        changes.extend(moment_of(event, told))
    return Outcome(hot, changed_cold, changes, daily, evicted, duplicate=False)


def _act(
    hot: Hot,
    cold: Cold | None,
    event: Accepted,
    as_of: int,
    in_force: InForce,
    changes: list[Change],
    daily: list[Daily],
) -> Cold | None:
    """What the event itself does; returns the cold part if it changed."""
    rules = in_force.current
    signals, at, cause = rules.signals_of(event.name), event.occurred_at, event.message_id
    if at < hot.first_seen_at:
        daily += [(hot.first_seen_at // DAY_MS, "users", "all", -1), (at // DAY_MS, "users", "all", 1)]
        hot.first_seen_at = at
    hot.last_seen_at = max(hot.last_seen_at, at)
    # the device comes first: what follows may already be a reason to write to it
    changed_cold = _context(hot, cold, event, changes)
    if rules.is_activity(event.name, signals):
        known, began_at, screens = hot.sessions, hot.session_start_at, hot.session_screens
        _be_active(hot, at, as_of, "screen" in signals, rules, changes, daily, cause)
        # nobody is compared by a history that is imported
        if hot.sessions > known and rules.compares and event.mode != "import":
            ended: dict[str, object] = {"ended_began_at": began_at, "ended_screens": screens}
            changes.append(Change("session_began", ended, at, "event", cause))
    if "open" in signals:
        hot.opens += 1
    if "uninstall" in signals and at >= hot.last_activity_at:
        _set_activity(hot, "uninstalled", at, "event", cause, changes)
    elif hot.activity == UNBORN:
        _set_activity(hot, "inactive", at, "event", cause, changes)
    if "consent" in signals:
        _consent(hot, event, changes)
    if not shop.SIGNALS.isdisjoint(signals):
        changed_cold = shop.fold(hot, changed_cold or cold, event, signals, in_force, daily) or changed_cold
    if event.city_id is not None:
        _places(hot, event, signals, as_of, rules, changes)
    if "push_opened" in signals and isinstance(event.properties.get("message_id"), str):
        changes.append(Change("opened", {"message_id": event.properties["message_id"]}, at, "event", cause))
    return changed_cold


def _context(hot: Hot, cold: Cold | None, event: Accepted, changes: list[Change]) -> Cold | None:
    """Fold what the event tells of the phone; the cold part if that changed it."""
    if event.context is None:
        return None
    if event.context.campaign:
        hot.first_channel = hot.first_channel or event.context.campaign
        hot.last_channel = event.context.campaign
    told = profile.digest(event.context)
    if told == hot.context_digest:
        return None
    hot.context_digest = told
    folded, news = profile.fold(cold or Cold(), event.context)
    changes.extend(Change(kind, payload, event.occurred_at, "event", event.message_id) for kind, payload in news)
    return folded if news else None


def _be_active(
    hot: Hot,
    at: int,
    as_of: int,
    screen: bool,
    rules: Compiled,
    changes: list[Change],
    daily: list[Daily],
    cause: str,
) -> None:
    hot.activities += 1
    day, visits = at // DAY_MS, hot.sessions
    sessions.enter(hot, at, 1 if screen else 0, rules.gap_ms)
    if hot.sessions != visits:
        daily.append((day, "visit", "sessions", 1))
    if screen:
        daily.append((day, "visit", "screens", 1))
    if day != hot.last_day or not hot.bitmap:
        daily += returns.come(hot, day)
    first = hot.last_activity_at < 0
    hot.first_activity_at = at if first else min(hot.first_activity_at, at)
    if at <= hot.last_activity_at:
        return
    hot.last_activity_at = at
    _set_activity(hot, activity.after_acting(hot, first, as_of, rules), at, "event", cause, changes)


def _set_activity(hot: Hot, to: str, at: int, cause_type: str, cause: str, changes: list[Change]) -> None:
    if to == hot.activity:
        return
    changes.append(Change("activity_changed", {"from": hot.activity or None, "to": to}, at, cause_type, cause))
    hot.activity, hot.activity_at = to, at


def _consent(hot: Hot, event: Accepted, changes: list[Change]) -> None:
    told = event.properties.get("categories")
    if not isinstance(told, dict):
        return
    news = {p: told[p] for p in PURPOSES if isinstance(told.get(p), bool)}
    if not news:
        return
    for purpose, given in news.items():
        hot.consents = consenting(hot.consents, purpose, given)
    changes.append(Change("consent_set", dict(news), event.occurred_at, "event", event.message_id))
    moves: list[cohorts.Move] = []
    if news.get("location") is False:
        moves = cohorts.forget_all(hot)
    elif news.get("search_history") is False:
        moves = cohorts.forget_searches(hot)
    _report(moves, event.occurred_at, "event", event.message_id, changes)


def _places(
    hot: Hot, event: Accepted, signals: frozenset[str], as_of: int, rules: Compiled, changes: list[Change]
) -> None:
    city, at = event.city_id, event.occurred_at
    assert city is not None
    moves: list[cohorts.Move] = []
    if "city_removed" in signals:
        moves += cohorts.remove(hot, city)
    if rules.consented(hot, "location"):
        if "default_city" in signals:
            moves += cohorts.set_default(hot, city)
        if "city_searched" in signals and rules.consented(hot, "search_history"):
            moves += cohorts.search(hot, city, at, as_of, rules.searched_ms)
        if "city_added" in signals:
            moves += cohorts.add(hot, city, at)
    _report(moves, at, "event", event.message_id, changes)


def _may_be_told(hot: Hot, event: Accepted, rules: Compiled) -> bool:
    """Of a place only what the user lets be recorded of it."""
    if event.city_id is None:
        return True
    searched = "city_searched" in rules.signals_of(event.name)
    return rules.consented(hot, "location") and (not searched or rules.consented(hot, "search_history"))


def _report(moves: list[cohorts.Move], at: int, cause_type: str, cause: str, changes: list[Change]) -> None:
    for move in moves:
        kind = "cohort_entered" if move.entered else "cohort_exited"
        changes.append(Change(kind, {"relation": move.relation, "city_id": move.city_id}, at, cause_type, cause))


def _advance(hot: Hot, moment: int, as_of: int, rules: Compiled, changes: list[Change], daily: list[Daily]) -> None:
    """Let every moment behind `moment`, where the user stands, up to `as_of` come, in order; then note the next one."""
    while True:
        pulse = activity.next_change(hot, rules)
        expiry = cohorts.next_expiry(hot, rules.searched_ms)
        flip = segments.next_flip(hot, moment, rules) if rules.timed else None
        hot.due_at = min((m for m in (pulse[0] if pulse else None, expiry, flip) if m is not None), default=-1)
        if not 0 <= hot.due_at <= as_of:
            return
        due, cause = hot.due_at, iso(hot.due_at)
        if expiry == due:
            _report(cohorts.expire(hot, due, rules.searched_ms), due, "tick", cause, changes)
        if pulse is not None and pulse[0] == due:
            _set_activity(hot, pulse[1], due, "tick", cause, changes)
        moment = max(moment, due)
        _settle(hot, due, moment, "tick", cause, rules, changes, daily)


def _settle(
    hot: Hot,
    at: int,
    moment: int,
    cause_type: str,
    cause: str,
    rules: Compiled,
    changes: list[Change],
    daily: list[Daily],
) -> None:
    """Draw the conclusions: stage, who counts as customer, segments. What happened at `at` is judged at `moment`."""
    while (to := lifecycle.next_stage(hot, rules)) is not None:
        changes.append(Change("stage_changed", {"from": hot.stage, "to": to}, at, cause_type, cause))
        hot.stage, hot.stage_at = to, at
    flags = lifecycle.flags(hot, rules)
    if flags != hot.flags:
        daily += standing.turned(hot, flags, at, cause_type == "rules", rules)
        hot.flags = flags
    now = segments.memberships(hot, moment, rules)
    if now != hot.segments:
        left = [s for s in hot.segments if s not in now]
        came = [s for s in now if s not in hot.segments]
        changes.extend(Change("segment_exited", {"segment": s}, at, cause_type, cause) for s in left)
        changes.extend(Change("segment_entered", {"segment": s}, at, cause_type, cause) for s in came)
        hot.segments = now
