"""One rules version, prepared so that the fold looks nothing up twice."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from services.segmenter.domain import orders
from services.segmenter.domain.measures import Bounds, bounds, named, seen_by
from services.segmenter.domain.moments import Awaited, awaited
from services.segmenter.domain.state import CUSTOMER, LOYAL, REPEAT, Hot, consent
from shared.contracts.rules import Rules, Segment

DAY_MS = 86_400_000
NOT_ACTIVITY = frozenset({"push_received", "background", "consent", "uninstall", "refund", "cancellation"})
_QUIET_CALLS = frozenset({"$identify", "$group", "$alias"})
ACTIVE_30D = "active_30d"
INACTIVE_30D = "inactive_30d"
_FRESH = frozenset({"new", "active", "at_risk", "reactivated"})


@dataclass(frozen=True, slots=True)
class Meaning:
    """What events of one name mean. Everything a person does is `activity`; receipts, background work and bookkeeping
    are not. `awaited`: what campaigns want to hear of them, None where none waits."""

    signals: frozenset[str]
    activity: bool
    open: bool
    screen: bool
    orders: bool
    awaited: Awaited | None


class Following(NamedTuple):
    """The stage behind another, and what has to be reached for it."""

    id: str
    enter: Bounds


class Measured(NamedTuple):
    """A segment that asks for more than stage and activity."""

    segment: Segment
    least: Bounds
    most: Bounds


class Compiled:
    """`version` and `rules`, with the meaning of each event name, spans in milliseconds, the stage `following` each,
    thresholds of `roles` by flag (a role without any is nobody's), segments by (stage, activity); `measured` segments
    ask for more than these two, `timed` ones for a span. `roles_see`, `segments_see`: all that a user's roles and
    segments are concluded from, time aside. `compares`: some campaign holds users out, so somebody waits to hear of
    sessions."""

    def __init__(self, version: int, rules: Rules) -> None:
        self.version = version
        self.rules = rules
        self._meanings = self._by_name()
        self._unlisted = _meaning("", frozenset(), None)
        days = rules.activity
        self.new_ms, self.reactivated_ms = days.new * DAY_MS, days.reactivated * DAY_MS
        self.at_risk_ms, self.inactive_ms, self.lapsed_ms = (
            days.at_risk * DAY_MS,
            days.inactive * DAY_MS,
            days.lapsed * DAY_MS,
        )
        self.searched_ms = rules.searched_days * DAY_MS
        self.gap_ms = rules.session_gap_minutes * 60_000
        self.first_stage = rules.stages[0].id
        self.following: dict[str, Following | None] = {
            stage.id: Following(after.id, bounds(after.enter)) if after is not None else None
            for stage, after in zip(rules.stages, [*rules.stages[1:], None], strict=True)
        }
        roles = {CUSTOMER: rules.rates.customer, REPEAT: rules.rates.repeat, LOYAL: rules.rates.loyal}
        self.roles = tuple((flag, bounds(least)) for flag, least in roles.items() if least)
        self.roles_see = seen_by("flags", *named(roles.values()))
        self.required = frozenset(rules.privacy.consent)
        self.currency = rules.currency
        self.compares = any(campaign.measured for campaign in rules.campaigns)
        self.measured = tuple(Measured(s, bounds(s.least), bounds(s.most)) for s in rules.segments if _measured(s))
        self.timed = tuple(one for one in self.measured if _timed(one.segment))
        asked = named([bound for s in rules.segments for bound in (s.least, s.most)])
        self.segments_see = seen_by("stage", "activity", *asked, *(["shop"] if self.timed else []))
        self._memberships: dict[tuple[str, str], tuple[str, ...]] = {}

    def meaning_of(self, name: str) -> Meaning:
        return self._meanings.get(name, self._unlisted)

    def _by_name(self) -> dict[str, Meaning]:
        signals: defaultdict[str, set[str]] = defaultdict(set)
        for signal, names in self.rules.signals.items():
            for name in names:
                signals[name].add(signal)
        waited = awaited(self.rules)
        known = signals.keys() | waited.keys() | _QUIET_CALLS
        return {name: _meaning(name, frozenset(signals[name]), waited.get(name)) for name in known}

    def memberships(self, stage: str, activity: str) -> tuple[str, ...]:
        """The segments that nothing but this stage and activity decides, sorted."""
        found = self._memberships.get((stage, activity))
        if found is None:
            names = [ACTIVE_30D if activity in _FRESH else INACTIVE_30D]
            names += [
                s.id
                for s in self.rules.segments
                if (not s.stage or stage in s.stage) and (not s.activity or activity in s.activity) and not _measured(s)
            ]
            found = self._memberships[stage, activity] = tuple(sorted(names))
        return found

    def consented(self, hot: Hot, purpose: str) -> bool:
        said = consent(hot.consents, purpose)
        return purpose not in self.required if said is None else said


def _meaning(name: str, signals: frozenset[str], told: Awaited | None) -> Meaning:
    return Meaning(
        signals,
        activity=name not in _QUIET_CALLS and not signals & NOT_ACTIVITY,
        open="open" in signals,
        screen="screen" in signals,
        orders=not orders.SIGNALS.isdisjoint(signals),
        awaited=told,
    )


def _measured(segment: Segment) -> bool:
    return bool(segment.least or segment.most or _timed(segment))


def _timed(segment: Segment) -> bool:
    return bool(segment.viewed or segment.ordered_days or segment.not_ordered_days)


class InForce(NamedTuple):
    """The rules of one shard: the current ones, and when each version came into force there (ascending,
    the current one last). A user who was not touched meanwhile passes through every version in turn."""

    current: Compiled
    history: tuple[tuple[int, Compiled], ...]
