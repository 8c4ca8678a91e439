"""What becomes of two users who turn out to be one, told again: the oracle's own table, and the order things go in.

A merge is defined on what is known of both in the end, not on the events that made it so: the table is the definition.
Shards tell each other what they do about it; each waits for what it read, in its log, from another one.
"""

from __future__ import annotations

import itertools
from base64 import b64decode
from typing import Any, NamedTuple

from shared.contracts.identifiers import message_hash
from shared.contracts.merges import Answered, Asked, Declined, Forgotten, decode_told
from tests.support.oracle_person import DAY, NEVER, Book, Person, of_orders


class Message(NamedTuple):
    """What one shard tells another: `what` is asked, answered, declined, forgotten or forwarded, about `user`."""

    what: str
    user: str
    other: str
    at: int
    received_at: int
    cause: str
    more: Any = None  # the person as they were, the reason, the request or the event


def told_of(payload: dict[str, Any]) -> dict[str, Any]:
    """The payload of a ledger row that tells something, in the words the oracle has for it."""
    told = decode_told(b64decode(payload["told"]))
    found: dict[str, Any] = {"shard": payload["shard"], "user": told.user_id}
    if isinstance(told, Asked):
        return {**found, "what": "asked", "other": told.by}
    if isinstance(told, Answered):
        return {**found, "what": "answered", "other": told.other, "empty": not told.hot}
    if isinstance(told, Forgotten):
        return {**found, "what": "forgotten", "other": told.other}
    if isinstance(told, Declined):
        return {**found, "what": "declined", "other": told.other, "reason": told.reason}
    return {**found, "what": "forwarded", "message_id": told.event.message_id}


def in_words(message: Message, shard: int) -> dict[str, Any]:
    found: dict[str, Any] = {"shard": shard, "user": message.user, "what": message.what}
    match message.what:
        case "asked" | "forgotten":
            return {**found, "other": message.other}
        case "answered":
            return {**found, "other": message.other, "empty": message.more is None}
        case "declined":
            return {**found, "other": message.other, "reason": message.more}
    return {**found, "message_id": message.more["message_id"]}


def veiled(user_id: str) -> str:
    """What is kept of an id that is somebody else's."""
    return f"{message_hash(user_id):012x}"


def absorb(me: Person, other: Person, at: int, moment: int, cause: str, book: Book) -> None:
    """`other` becomes part of `me`, who has been brought to `moment`."""
    me.from_nowhere()
    me.now = moment
    _devices(me, other, at, cause)
    news = {k: v for k, v in other.profile.items() if v and not me.profile[k]}
    if news:
        me.profile |= news
        me.tell("profile_set", news, at, "merge", cause)
    purposes = me.consents.keys() | other.consents.keys()
    both: dict[str, bool] = {p: me.consents.get(p, True) and other.consents.get(p, True) for p in purposes}
    said: dict[str, Any] = {
        p: both[p] for p in ("location", "search_history", "push") if p in both and both[p] != me.consents.get(p)
    }
    if said:
        me.consents = both
        me.tell("consent_set", said, at, "merge", cause)
    earlier = other.first_seen < me.first_seen
    if (other.first_seen, other.assignment) < (me.first_seen, me.assignment) and other.assignment != me.assignment:
        me.assignment = other.assignment
        me.tell("assignment_set", {"assignment_id": me.assignment}, at, "merge", cause)
    me.channels[0] = (other.channels[0] or me.channels[0]) if earlier else (me.channels[0] or other.channels[0])
    later = other.last_seen > me.last_seen
    me.channels[1] = (other.channels[1] or me.channels[1]) if later else (me.channels[1] or other.channels[1])
    me.first_seen, me.last_seen = min(me.first_seen, other.first_seen), max(me.last_seen, other.last_seen)
    pulses = [(one.pulse, one.pulse_at, one.last_act) for one in (me, other) if one.pulse]
    acts = [one.first_act for one in (me, other) if one.first_act != NEVER]
    me.first_act, me.last_act = min(acts, default=NEVER), max(me.last_act, other.last_act)
    for name in ("opens", "screens", "sessions", "activities"):
        me.counts[name] += other.counts[name]
    _visit(me, other, book)
    _days(me, other)
    me.turned = max(me.turned, other.turned)
    me.bought.unite(other.bought)
    me.tell("user_merged", {"from": other.user_id, "to": me.user_id}, at, "merge", cause)
    _places(me, other, at, moment, cause, book)
    _stage(me, other, at, cause, book)
    pulse, since = _pulse(me, pulses, moment, book)
    me.pulse_becomes(pulse, at, "merge", cause)
    me.pulse_at = since
    me.conclude(at, "merge", cause, book)
    me.live_until(moment, book)


def leave(me: Person, to: str, at: int, cause: str, book: Book) -> None:
    """The user becomes part of `to`: what is left to count of them is what they did, day by day."""
    me.from_nowhere()
    me.tell("user_merged", {"from": me.user_id, "to": to}, at, "merge", cause)
    for segment in sorted(me.segments):
        me.tell("segment_exited", {"segment": segment}, at, "merge", cause)
    for relation, city in me.ties():
        me.cohort(False, relation, city, at, cause, "merge")
    for role in sorted(me.roles):
        if not of_orders(book.rates[role]):
            me.turned = max(me.turned, at // DAY)
            me.turns.append((me.turned, role, -1))
    newest = max(me.days, default=NEVER)
    me.settled = {day: pause for day, pause in me.pauses().items() if newest - day >= 64}
    me.merged_into = to


def _devices(me: Person, other: Person, at: int, cause: str) -> None:
    mine, found = dict(me.devices), list(other.devices.values())
    for device in mine.values():
        found = [d for d in found if d[0] != device[0] and d[2] != device[2]]
        found = [*found[max(0, len(found) - 7) :], device]
    me.devices = {d[0]: d for d in found}
    if list(me.devices.values()) == list(mine.values()):
        return
    for gone in mine:
        if gone not in me.devices:
            me.tell("device_removed", {"device_id": gone}, at, "merge", cause)
    for device in found:
        told = {"id": device[0], "type": device[1], "token": device[2]}
        me.tell("device_set", {"device": told}, at, "merge", cause)


def _visit(me: Person, other: Person, book: Book) -> None:
    if other.visit is None or me.visit is None:
        me.visit = me.visit or (list(other.visit) if other.visit else None)
        return
    first, second = sorted((me.visit, other.visit), key=lambda one: (one[0], one[1]))
    if second[0] - first[1] <= book.gap:
        me.counts["sessions"] -= 1
        me.visits[second[0] // DAY, "sessions"] -= 1
        me.visit = [first[0], max(first[1], second[1]), first[2] + second[2]]
    else:
        me.visit = list(second)


def _days(me: Person, other: Person) -> None:
    me.counts["active_days"] += other.counts["active_days"] - len(me.days & other.days)
    newest = max(me.days, default=NEVER)
    me.settled = {day: pause for day, pause in me.pauses().items() if newest - day >= 64}
    me.counted_elsewhere |= other.settled.keys() - me.days
    me.days = me.days | other.days
    me.months = me.months | other.months


def _places(me: Person, other: Person, at: int, moment: int, cause: str, book: Book) -> None:
    if not me.may("location", book):
        for relation, city in me.ties():
            me.cohort(False, relation, city, at, cause, "merge")
        me.home, me.added, me.searched = 0, {}, {}
        return
    if other.home and not me.home:
        me.home = other.home
        me.cohort(True, "default", me.home, at, cause, "merge")
    if me.may("search_history", book):
        fresh = {c: v for c, v in other.searched.items() if v[1] + book.search_kept > moment}
        me.searched = _cities(me, "searched", me.searched, fresh, at, cause)
    else:
        for city in me.searched:
            me.cohort(False, "searched", city, at, cause, "merge")
        me.searched = {}
    me.added = _cities(me, "added", me.added, other.added, at, cause)


def _cities(
    me: Person, relation: str, mine: dict[int, list[int]], others: dict[int, list[int]], at: int, cause: str
) -> dict[int, list[int]]:
    found = {city: list(visited) for city, visited in mine.items()}
    for city, (count, last) in others.items():
        found[city] = [found[city][0] + count, max(found[city][1], last)] if city in found else [count, last]
    kept = sorted(found, key=lambda city: (found[city][1], city))[-8:]
    for city in mine:
        if city not in kept:
            me.cohort(False, relation, city, at, cause, "merge")
    for city in found:
        if city in kept and city not in mine:
            me.cohort(True, relation, city, at, cause, "merge")
    return {city: found[city] for city in found if city in kept}


def _stage(me: Person, other: Person, at: int, cause: str, book: Book) -> None:
    order = [stage["id"] for stage in book.stages]
    mine, theirs = (order.index(one.stage) if one.stage in order else 0 for one in (me, other))
    if mine == theirs:
        me.stage_at = min(me.stage_at, other.stage_at)
    for stage in order[mine + 1 : theirs + 1]:
        me.stage_becomes(stage, at, "merge", cause)
        me.stage_at = other.stage_at


def _pulse(me: Person, pulses: list[tuple[str, int, int]], moment: int, book: Book) -> tuple[str, int]:
    """By what both did, from the first act to the last; a day of return is one behind a pause that made inactive."""
    gone = max((since for pulse, since, _ in pulses if pulse == "uninstalled"), default=NEVER)
    acted = [(pulse, since) for pulse, since, last in pulses if last != NEVER]
    if gone != NEVER and gone >= me.last_act:
        return "uninstalled", gone
    if not acted:
        return "inactive", min(since for _, since, _ in pulses)
    if len(acted) == 1:
        return acted[0]
    for span in ("lapsed", "inactive", "at_risk"):
        if moment - me.last_act >= book.days[span] * DAY:
            return span, me.last_act + book.days[span] * DAY
    settled = me.first_act + book.days["new"] * DAY
    if moment < settled:
        return "new", me.first_act
    inside = sorted(me.days)
    returns = [
        day
        for before, day in itertools.pairwise(inside)
        if day - before >= book.days["inactive"] and (day + book.days["reactivated"]) * DAY > moment
    ]
    return ("reactivated", max(returns) * DAY) if returns else ("active", settled)
