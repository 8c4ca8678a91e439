"""One rules version, prepared so that the fold looks nothing up twice."""

from __future__ import annotations

from typing import NamedTuple

from services.segmenter.domain.moments import awaited
from services.segmenter.domain.state import Hot, consent
from shared.contracts.rules import Rules, Segment, Stage

DAY_MS = 86_400_000
NOT_ACTIVITY = frozenset({"push_received", "background", "consent", "uninstall", "refund", "cancellation"})
_QUIET_CALLS = frozenset({"$identify", "$group", "$alias"})
ACTIVE_30D = "active_30d"
INACTIVE_30D = "inactive_30d"
_FRESH = frozenset({"new", "active", "at_risk", "reactivated"})


class Compiled:
    """`version` and `rules`, with signals by event name, spans in milliseconds, the stage that follows each
    stage, segments by (stage, activity); `measured` segments ask for more than these two, `timed` ones for a span;
    `awaited` are the events that campaigns wait for. `compares`: some campaign holds users out, so somebody waits
    to hear of sessions."""

    def __init__(self, version: int, rules: Rules) -> None:
        self.version = version
        self.rules = rules
        self.signals: dict[str, frozenset[str]] = {}
        for signal, names in rules.signals.items():
            for name in names:
                self.signals[name] = self.signals.get(name, frozenset()) | {signal}
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
        self.stages: dict[str, Stage | None] = {
            stage.id: after for stage, after in zip(rules.stages, [*rules.stages[1:], None], strict=True)
        }
        self.required = frozenset(rules.privacy.consent)
        self.currency = rules.currency
        self.compares = any(campaign.measured for campaign in rules.campaigns)
        self.measured = tuple(s for s in rules.segments if _measured(s))
        self.timed = tuple(s for s in self.measured if s.viewed or s.ordered_days or s.not_ordered_days)
        self.awaited = awaited(rules)
        self._memberships: dict[tuple[str, str], tuple[str, ...]] = {}

    def signals_of(self, name: str) -> frozenset[str]:
        return self.signals.get(name, frozenset())

    def is_activity(self, name: str, signals: frozenset[str]) -> bool:
        """Everything a person does is activity; receipts, background work and bookkeeping are not."""
        return name not in _QUIET_CALLS and not signals & NOT_ACTIVITY

    def memberships(self, stage: str, activity: str) -> tuple[str, ...]:
        """The segments that nothing but this stage and activity decides, sorted."""
        found = self._memberships.get((stage, activity))
        if found is None:
            names = [ACTIVE_30D if activity in _FRESH else INACTIVE_30D]
            names += [
                s.id
                for s in self.rules.segments
                if (not s.stage or stage in s.stage)
                and (not s.activity or activity in s.activity)
                and s not in self.measured
            ]
            found = self._memberships[stage, activity] = tuple(sorted(names))
        return found

    def consented(self, hot: Hot, purpose: str) -> bool:
        said = consent(hot.consents, purpose)
        return purpose not in self.required if said is None else said


def _measured(segment: Segment) -> bool:
    return bool(segment.least or segment.most or segment.viewed or segment.ordered_days or segment.not_ordered_days)


class InForce(NamedTuple):
    """The rules of one shard: the current ones, and when each version came into force there (ascending,
    the current one last). A user who was not touched meanwhile passes through every version in turn."""

    current: Compiled
    history: tuple[tuple[int, Compiled], ...]
