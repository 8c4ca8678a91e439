"""What two users come to who turn out to be one: the table, and what both become by it. Pure.

A merge is *defined* on what is kept of each: `HOT`, `SHOP` and `COLD` say for every field what the two values become,
or which function of this file decides it together with others. `absorb` makes the known user, `leave` what stays of
the other one. What follows from the united facts (segments, roles, stages reached, what falls due) is decided anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from services.segmenter.domain import cohorts, orders, profile, returns, shop, standing
from services.segmenter.domain.compiled import DAY_MS, Compiled, InForce
from services.segmenter.domain.passing import advance, report, set_activity, settle
from services.segmenter.domain.state import (
    NEVER_SHOPPED,
    PURPOSES,
    Change,
    Cold,
    Daily,
    Hot,
    Shop,
    consent,
    consenting,
    told_consents,
)
from services.segmenter.domain.visited import MAX_CITIES, Visit, packed, visits


class Merged(NamedTuple):
    """One of the two afterwards."""

    hot: Hot
    cold: Cold
    changes: list[Change]
    daily: list[Daily]


# -- the table ----------------------------------------------------------------------------------------


def added(own: int, other: int) -> int:
    return own + other


def earlier(own: int, other: int) -> int:
    """-1 is never."""
    return min(own, other) if own >= 0 and other >= 0 else max(own, other)


def later(own: int, other: int) -> int:
    return max(own, other)


def own_else_other(own: Any, other: Any) -> Any:
    return own or other


def own_alone(own: Any, _other: Any) -> Any:
    return own


def withdrawn_else_given(own: int, other: int) -> int:
    """What either withdrew is withdrawn."""
    found = 0
    for purpose in PURPOSES:
        told = {consent(own, purpose), consent(other, purpose)} - {None}
        if told:
            found = consenting(found, purpose, False not in told)
    return found


def newest_views(own: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted((*own, *other), reverse=True)[: shop.SEEN])


Rule = Callable[[Any, Any], Any]
Together = str
"""The name of what decides a field together with others."""

HOT: Mapping[str, Rule | Together] = {
    "stage": "_further",
    "stage_at": "_further",
    "activity": "_pulse",
    "activity_at": "_pulse",
    "first_seen_at": earlier,
    "last_seen_at": later,
    "first_activity_at": earlier,
    "last_activity_at": later,
    "session_start_at": "_sessions",
    "session_last_at": "_sessions",
    "session_screens": "_sessions",
    "sessions": "_sessions",
    "screens": added,
    "opens": added,
    "activities": added,
    "last_day": "returns.unite",
    "bitmap": "returns.unite",
    "active_days": "returns.unite",
    "default_city": "_cities",
    "searched": "_cities",
    "added": "_cities",
    "segments": "settle",
    "consents": withdrawn_else_given,
    "flags": "settle",
    "orders": "_orders",
    "order_days": "_orders",
    "revenue": "_orders",
    "due_at": "advance",
    "rules_version": own_alone,
    "ring": own_alone,
    "spilled_hour": own_alone,
    "context_digest": own_alone,
    "first_channel": "_channels",
    "last_channel": "_channels",
    "assignment_id": "_assigned",
    "shop": "SHOP",
    "older_days": "returns.unite",
    "months": "returns.unite",
    "turned_day": later,
    "merged_into": own_alone,
    "known": own_alone,
}
SHOP: Mapping[str, Rule | Together] = {
    "last_order_at": "_orders",
    "online_orders": "_orders",
    "store_orders": "_orders",
    "pickup_orders": "_orders",
    "views": added,
    "viewed_at": newest_views,
    "guides": added,
    "wishlist": added,
    "coupons": added,
    "reviews": added,
    "referrals": added,
    "feedback": added,
    "score": "_scored",
    "scored_at": "_scored",
}
COLD: Mapping[str, Rule | Together] = {
    "devices": "_devices",
    "locale": own_else_other,
    "timezone": own_else_other,
    "app_version": own_else_other,
    "orders": "_orders",
    "forgotten_at": "_orders",
    "claims": own_alone,
}


def _by_table(table: Mapping[str, Rule | Together], own: Any, other: Any) -> dict[str, Any]:
    return {
        name: rule(getattr(own, name), getattr(other, name))
        for name, rule in table.items()
        if not isinstance(rule, str)
    }


# -- the known user -----------------------------------------------------------------------------------


def absorb(
    user_id: str,
    hot: Hot,
    cold: Cold,
    other_id: str,
    other: Hot,
    other_cold: Cold,
    *,
    at: int,
    as_of: int,
    cause: str,
    rules: InForce,
) -> Merged:
    """The known user, brought to `as_of` already, with the other one as part of them; `at` is when that became true.

    What the other one added to the counts of days was taken out of them by `leave`, sessions and screens excepted."""
    mine, hot, current = hot, replace(hot), rules.current
    changes: list[Change] = []
    daily: list[Daily] = []
    for name, value in _by_table(HOT, mine, other).items():
        setattr(hot, name, value)
    if hot.first_seen_at != mine.first_seen_at:
        daily += [(mine.first_seen_at // DAY_MS, "users", "all", -1), (hot.first_seen_at // DAY_MS, "users", "all", 1)]
    _sessions(hot, mine, other, current.gap_ms, daily)
    daily += returns.unite(hot, other)
    _channels(hot, mine, other)
    hot.assignment_id = _assigned(user_id, mine, other_id, other)
    after = replace(cold, **_by_table(COLD, cold, other_cold))
    after.devices = _devices(cold, other_cold)
    after = _orders(hot, mine, cold, other, other_cold, after, rules, daily)
    # who reads the feed in order is to have the device before a reason to write to it
    changes += [Change(kind, told, at, "merge", cause) for kind, told in _told(user_id, hot, after, mine, cold)]
    changes.append(Change("user_merged", {"from": other_id, "to": user_id}, at, "merge", cause))
    report(_cities(hot, other, as_of, current), at, "merge", cause, changes)
    _further(hot, other, at, cause, current, changes)
    activity, since = _pulse(hot, mine, other, as_of, current)
    set_activity(hot, activity, at, "merge", cause, changes)
    hot.activity_at = since
    settle(hot, at, as_of, "merge", cause, current, changes, daily)
    advance(hot, as_of, as_of, current, changes, daily)
    return Merged(hot, after, changes, daily)


def _told(user_id: str, hot: Hot, cold: Cold, mine: Hot, own: Cold) -> list[tuple[str, dict[str, object]]]:
    """(kind, payload) of what the reader of the feed has to know of the user besides what is public."""
    told: list[tuple[str, dict[str, object]]] = []
    if cold.devices != own.devices:
        kept = {device.id for device in cold.devices}
        told += [("device_removed", {"device_id": d.id}) for d in own.devices if d.id not in kept]
        told += [("device_set", {"device": {"id": d.id, "type": d.type, "token": d.token}}) for d in cold.devices]
    news = {n: getattr(cold, n) for n in ("locale", "timezone", "app_version") if getattr(cold, n) != getattr(own, n)}
    if news:
        told.append(("profile_set", news))
    said = told_consents(hot.consents)
    news = {purpose: given for purpose, given in said.items() if given != consent(mine.consents, purpose)}
    if news:
        told.append(("consent_set", news))
    if hot.assignment_id != mine.assignment_id:
        told.append(("assignment_set", {"assignment_id": hot.assignment_id or user_id}))
    return told


def _further(hot: Hot, other: Hot, at: int, cause: str, rules: Compiled, changes: list[Change]) -> None:
    """The stage of who came further, since when they did; of one stage, since the earlier. Each stage on the way is
    passed through."""
    order = list(rules.following)
    own, further = (order.index(one.stage) if one.stage in order else 0 for one in (hot, other))
    if own == further:
        hot.stage_at = min(hot.stage_at, other.stage_at)
    if further <= own:
        return
    for stage in order[own + 1 : further + 1]:
        changes.append(Change("stage_changed", {"from": hot.stage, "to": stage}, at, "merge", cause))
        hot.stage = stage
    hot.stage_at = other.stage_at


def _pulse(hot: Hot, mine: Hot, other: Hot, as_of: int, rules: Compiled) -> tuple[str, int]:
    """Activity and since when, by what both did together: where only one acted, theirs, unless the app was uninstalled
    behind that; else by the time since the last act, then since the first one, and by the newest pause."""
    first, last = hot.first_activity_at, hot.last_activity_at
    both = [one for one in (mine, other) if one.activity]
    gone = max((one.activity_at for one in both if one.activity == "uninstalled"), default=-1)
    acted = [one for one in both if one.last_activity_at >= 0]
    if gone >= max(last, 0):
        return "uninstalled", gone
    if not acted:
        return "inactive", min(one.activity_at for one in both)
    if len(acted) == 1:
        return acted[0].activity, acted[0].activity_at
    for span, activity in (
        (rules.lapsed_ms, "lapsed"),
        (rules.inactive_ms, "inactive"),
        (rules.at_risk_ms, "at_risk"),
    ):
        if as_of - last >= span:
            return activity, last + span
    if as_of - first < rules.new_ms:
        return "new", first
    day = returns.came_back_on(hot, rules.inactive_ms // DAY_MS, (as_of - rules.reactivated_ms) // DAY_MS + 1)
    return ("active", first + rules.new_ms) if day is None else ("reactivated", day * DAY_MS)


def _sessions(hot: Hot, mine: Hot, other: Hot, gap_ms: int, daily: list[Daily]) -> None:
    """Sessions add up; the newest of both are one where less than the gap lies between them: whoever signs in goes on.
    Else the later one is the present one."""
    hot.sessions = mine.sessions + other.sessions
    if other.session_last_at < 0:
        return
    first, second = sorted((mine, other), key=lambda one: (one.session_start_at, one.session_last_at))
    if first.session_start_at >= 0 and second.session_start_at - first.session_last_at <= gap_ms:
        hot.sessions -= 1
        daily.append((second.session_start_at // DAY_MS, "visit", "sessions", -1))
        hot.session_start_at = first.session_start_at
        hot.session_last_at = max(first.session_last_at, second.session_last_at)
        hot.session_screens = first.session_screens + second.session_screens
    else:
        hot.session_start_at, hot.session_last_at = second.session_start_at, second.session_last_at
        hot.session_screens = second.session_screens


def _channels(hot: Hot, mine: Hot, other: Hot) -> None:
    """The first channel of who was seen first, the last one of who was seen last."""
    first, second = (mine, other) if mine.first_seen_at <= other.first_seen_at else (other, mine)
    hot.first_channel = first.first_channel or second.first_channel
    first, second = (mine, other) if mine.last_seen_at >= other.last_seen_at else (other, mine)
    hot.last_channel = first.last_channel or second.last_channel


def _assigned(user_id: str, mine: Hot, other_id: str, other: Hot) -> str:
    """The id that draws the user's holdouts: that of who was seen first. Empty where it is the user's own."""
    _, drawn = min(
        (mine.first_seen_at, mine.assignment_id or user_id), (other.first_seen_at, other.assignment_id or other_id)
    )
    return "" if drawn == user_id else drawn


def _cities(hot: Hot, other: Hot, as_of: int, rules: Compiled) -> list[cohorts.Move]:
    """The user's own default city, else the other's; searched and added ones of both, counted together, the newest
    eight of each; none that the consent of both together does not cover."""
    if not rules.consented(hot, "location"):
        return cohorts.forget_all(hot)
    moves = cohorts.set_default(hot, other.default_city) if other.default_city and not hot.default_city else []
    if not rules.consented(hot, "search_history"):
        moves += cohorts.forget_searches(hot)
    else:
        fresh = [v for v in visits(other.searched) if v.last_at + rules.searched_ms > as_of]
        hot.searched, more = _visited(hot.searched, fresh, "searched")
        moves += more
    hot.added, more = _visited(hot.added, visits(other.added), "added")
    return moves + more


def _visited(own: bytes, others: list[Visit], relation: str) -> tuple[bytes, list[cohorts.Move]]:
    before = visits(own)
    found = {visit.city_id: visit for visit in before}
    for visit in others:
        mine = found.get(visit.city_id)
        found[visit.city_id] = (
            visit if mine is None else Visit(visit.city_id, mine.count + visit.count, max(mine.last_at, visit.last_at))
        )
    newest = sorted(found.values(), key=lambda visit: (visit.last_at, visit.city_id))[-MAX_CITIES:]
    kept = {visit.city_id for visit in newest}
    moves = [cohorts.Move(False, relation, visit.city_id) for visit in before if visit.city_id not in kept]
    known = {visit.city_id for visit in before}
    moves += [cohorts.Move(True, relation, city) for city in found if city in kept and city not in known]
    return packed(visit for visit in found.values() if visit.city_id in kept), moves


def _devices(own: Cold, other: Cold) -> tuple[Any, ...]:
    """The user's own devices are the newest ones."""
    devices = other.devices
    for device in own.devices:
        devices, _ = profile.set_device(devices, device)
    return devices


def _orders(
    hot: Hot, mine: Hot, own: Cold, other: Hot, other_cold: Cold, after: Cold, rules: InForce, daily: list[Daily]
) -> Cold:
    """The orders of both, one that both told of counted once, all that is made of them, and the rest of the shop."""
    if other.shop is None:
        after.orders, after.forgotten_at = own.orders, own.forgotten_at
        return after
    after.orders = orders.united(own, other_cold)
    after.forgotten_at = max(own.forgotten_at, other_cold.forgotten_at)
    was, others, now = orders.totals(own), orders.totals(other_cold), orders.totals(after)
    forgotten = [total - known for total, known in zip(_kept(mine), was[:3], strict=True)]
    more = [total - known for total, known in zip(_kept(other), others[:3], strict=True)]
    forgotten_days = [(one, one.forgotten_at // DAY_MS) for one in (own, other_cold)]
    days = len(
        {
            order.at // DAY_MS
            for order in after.orders
            # up to the day of a user's newest forgotten order the days are in the total already
            if orders.counts(order)
            and not any(order.at // DAY_MS <= day and _has(one, order.number) for one, day in forgotten_days)
        }
    )
    hot.orders = forgotten[0] + more[0] + now.orders
    hot.order_days = forgotten[1] + more[1] + days
    hot.revenue = forgotten[2] + more[2] + now.revenue
    daily += [*orders.listed(own, -1), *orders.listed(after, 1)]
    daily += standing.ordered(mine, own, was, rules, -1) + standing.ordered(hot, after, now, rules, 1)
    shop_own, shop_other = mine.shop or NEVER_SHOPPED, other.shop
    channels = [
        getattr(shop_own, name) - was.channels[n] + getattr(shop_other, name) - others.channels[n] + now.channels[n]
        for n, name in enumerate(("", "online_orders", "store_orders", "pickup_orders"))
        if name
    ]
    hot.shop = replace(
        shop_own,
        **_by_table(SHOP, shop_own, shop_other),
        last_order_at=now.last_at,
        online_orders=channels[0],
        store_orders=channels[1],
        pickup_orders=channels[2],
        **_scored(shop_own, shop_other),
    )
    return orders.bounded(after)


def _kept(hot: Hot) -> tuple[int, int, int]:
    return hot.orders, hot.order_days, hot.revenue


def _has(cold: Cold, number: int) -> bool:
    return any(order.number == number for order in cold.orders)


def _scored(own: Shop, other: Shop) -> dict[str, int]:
    """What the newest feedback gave."""
    newest = other if other.scored_at > own.scored_at else own
    return {"score": newest.score, "scored_at": newest.scored_at}


# -- the other one ------------------------------------------------------------------------------------


def leave(user_id: str, hot: Hot, cold: Cold, to: str, *, at: int, cause: str, rules: InForce) -> Merged:
    """What stays of a user who becomes part of `to`: where they went, and which message ids were seen. They leave
    every cohort, segment and role, and the counts of days as far as `absorb` puts them there again."""
    mine, totals = replace(hot), orders.totals(cold)
    changes = [Change("user_merged", {"from": user_id, "to": to}, at, "merge", cause)]
    changes += [Change("segment_exited", {"segment": one}, at, "merge", cause) for one in hot.segments]
    report(cohorts.forget_all(mine), at, "merge", cause, changes)
    daily = [(hot.first_seen_at // DAY_MS, "users", "all", -1), *returns.left(hot), *orders.listed(cold, -1)]
    daily += standing.ordered(hot, cold, totals, rules, -1)
    daily += standing.turned(mine, 0, at, False, rules.current)
    return Merged(_tombstone(hot, to, at, rules), Cold(), changes, daily)


def never_seen(to: str, at: int, rules: InForce) -> Hot:
    """What is kept of an id that became part of `to` before any event of its own was read."""
    return _tombstone(None, to, at, rules)


def _tombstone(hot: Hot | None, to: str, at: int, rules: InForce) -> Hot:
    kept = Hot("", at, "", at, at, at, rules_version=rules.current.version, merged_into=to)
    if hot is not None:
        kept.ring, kept.spilled_hour = hot.ring, hot.spilled_hour
    return kept
