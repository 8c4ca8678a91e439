"""What would a tracking plan do to traffic? Counted by event, without values and without names it does not know."""

from __future__ import annotations

from collections import Counter
from typing import Any

from services.ingest.domain.intake import Posted
from services.ingest.domain.tracking_plan import Plan
from shared.contracts.rules import Rules

_SEVEREST = ("reject", "drop", "flag")


class Trial:
    """What the plan alone says: an event it accepts may be too old, or name a person."""

    def __init__(self, rules: Rules) -> None:
        self._plan, self._planned = Plan(rules), rules.tracking_plan.events.keys()
        self.events = 0
        self._by_event: Counter[str] = Counter(dict.fromkeys(self._planned, 0))
        self._became: Counter[str] = Counter()
        self._violating: Counter[tuple[str, str]] = Counter()
        self._reasons: Counter[tuple[str, str, str]] = Counter()

    def see(self, event: Posted | None) -> None:
        self.events += 1
        if event is None:
            return
        name = event.name if event.name in self._planned else ""
        self._by_event[name] += 1
        _, violations = self._plan.check(event.name, event.properties)
        if not violations:
            return
        actions = {v.action for v in violations}
        became = next(action for action in _SEVEREST if action in actions)
        self._became[became] += 1
        self._violating[name, became] += 1
        self._reasons.update({(name, v.action, v.reason) for v in violations})

    def told(self) -> dict[str, Any]:
        """Counts of events: how many the plan would reject, mend or flag, and why; by planned event (empty: all
        others). An event with several violations counts under each reason, and under the severest action."""
        items = [
            {
                "event": name,
                "events": count,
                **{action: self._violating[name, action] for action in _SEVEREST},
                "reasons": [
                    {"action": action, "reason": reason, "events": events}
                    for (of, action, reason), events in sorted(self._reasons.items(), key=lambda one: (-one[1], one[0]))
                    if of == name
                ],
            }
            for name, count in sorted(self._by_event.items(), key=lambda one: (one[0] == "", -one[1], one[0]))
        ]
        return {"events": self.events, **{action: self._became[action] for action in _SEVEREST}, "items": items}
