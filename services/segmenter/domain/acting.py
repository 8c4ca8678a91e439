"""What an event itself does to its user, before any conclusion is drawn from it."""

from __future__ import annotations

from services.segmenter.domain import activity, cohorts, profile, returns, sessions, shop
from services.segmenter.domain.compiled import DAY_MS, Compiled, InForce, Meaning
from services.segmenter.domain.passing import UNBORN, report, set_activity
from services.segmenter.domain.state import PURPOSES, Change, Cold, Daily, Hot, consenting
from shared.contracts.events import Accepted


def act(
    hot: Hot,
    cold: Cold | None,
    event: Accepted,
    meaning: Meaning,
    as_of: int,
    in_force: InForce,
    changes: list[Change],
    daily: list[Daily],
) -> Cold | None:
    """What the event itself does; returns the cold part if it changed."""
    rules = in_force.current
    signals, at, cause = meaning.signals, event.occurred_at, event.message_id
    if at < hot.first_seen_at:
        daily += [(hot.first_seen_at // DAY_MS, "users", "all", -1), (at // DAY_MS, "users", "all", 1)]
        hot.first_seen_at = at
    hot.last_seen_at = max(hot.last_seen_at, at)
    # the device comes first: what follows may already be a reason to write to it
    changed_cold = _context(hot, cold, event, changes)
    if meaning.activity:
        known, began_at, screens = hot.sessions, hot.session_start_at, hot.session_screens
        _be_active(hot, at, as_of, meaning.screen, rules, changes, daily, cause)
        # nobody is compared by a history that is imported
        if hot.sessions > known and rules.compares and event.mode != "import":
            ended: dict[str, object] = {"ended_began_at": began_at, "ended_screens": screens}
            changes.append(Change("session_began", ended, at, "event", cause))
    if meaning.open:
        hot.opens += 1
    if "uninstall" in signals and at >= hot.last_activity_at:
        set_activity(hot, "uninstalled", at, "event", cause, changes)
    elif hot.activity == UNBORN:
        set_activity(hot, "inactive", at, "event", cause, changes)
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
    if first or at < hot.first_activity_at:
        hot.first_activity_at = at
    if at <= hot.last_activity_at:
        return
    hot.last_activity_at = at
    set_activity(hot, activity.after_acting(hot, first, as_of, rules), at, "event", cause, changes)


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
    report(moves, event.occurred_at, "event", event.message_id, changes)


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
    report(moves, at, "event", event.message_id, changes)


def may_be_told(hot: Hot, event: Accepted, meaning: Meaning, rules: Compiled) -> bool:
    """Of a place only what the user lets be recorded of it."""
    if event.city_id is None:
        return True
    searched = "city_searched" in meaning.signals
    return rules.consented(hot, "location") and (not searched or rules.consented(hot, "search_history"))
