"""What each user should be told of a chain of alerts, by the rules as the README tells them, and nothing of the product.

Told in dictionaries and sets, as one would on paper: what is in force, whom it concerns, what they know already.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SEVERITIES = {"Unknown": 0, "Minor": 1, "Moderate": 2, "Severe": 3, "Extreme": 4}
EVENTS = {"Advisory": 1, "Watch": 2, "Warning": 3, "Emergency": 4}
MINUTE = 60_000


class Alert(NamedTuple):
    id: str
    event: str
    severity: str
    headline: str
    sent: int
    end: int
    cities: frozenset[int]

    @property
    def rank(self) -> tuple[int, int]:
        return SEVERITIES[self.severity], EVENTS.get(self.event.split(" ")[-1].capitalize(), 0)


@dataclass
class Note:
    """A notification of a user with the words of an alert (`of`), or one that was taken away (`gone`: when what took it
    was sent)."""

    name: str
    alerts: frozenset[str]
    cities: dict[int, tuple[int, int]]
    sent: int
    city: int
    words: tuple[Any, ...]
    end: int
    at: int
    of: str
    gone: int | None = None

    def stands(self, now: int) -> bool:
        return self.gone is None and now < self.end


class Act(NamedTuple):
    """Something that happens on the phone: `note` is what is known afterwards."""

    name: str
    action: str
    sound: bool
    note: Note
    quiet: bool = False
    """It would say what stands there already, and so nothing happens."""


@dataclass
class Knowledge:
    """What one user knows of one chain: the last note under each of its names. `least`: of less than this severity nobody
    hears a sound."""

    notes: dict[str, Note] = field(default_factory=dict)
    least: int = 0

    def learns(self, act: Act) -> None:
        self.notes[act.name] = act.note

    def acts(
        self, root: str, alerts: Iterable[Alert], home: int | None, others: Iterable[int], wanted: Any, now: int,
        sent: int, ttl: int,
    ) -> list[Act]:  # fmt: skip
        """What the user is told now. `alerts`: what is in force; `wanted`: whether a campaign begins with an alert."""
        standing = [note for note in self.notes.values() if note.stands(now)]
        choice = standing or list(self.notes.values())
        main = max(choice, key=lambda n: (max(n.cities.values()), n.at, n.name)) if choice else None
        spare = [note for note in standing if note is not main]
        mine = ([home] if home else []) + sorted(set(others) - {home})

        # whoever has it on the phone follows; and whoever lost it by what was sent no earlier than what gives it back
        def resumed(at: int) -> bool:
            return main is not None and (bool(standing) or (main.gone is not None and at <= main.gone))

        live = [a for a in alerts if a.end > now and a.cities & set(mine)]
        if not any(resumed(a.sent) or wanted(a) for a in live):
            return [_away(note, sent) for note in standing]
        newest = max(a.sent for a in live)
        known = main if resumed(newest) else None
        covered = [city for city in mine if any(city in a.cities for a in live)]
        before: dict[int, tuple[int, int]] = {}
        for note in (standing or [known]) if known else ():
            for city, rank in note.cities.items():
                old = before.get(city, (0, 0))
                before[city] = (max(old[0], rank[0]), max(old[1], rank[1]))

        def worse(a: Alert, city: int) -> bool:
            if city not in a.cities or a.rank[0] < self.least:
                return False
            return city not in before or a.rank[0] > before[city][0] or a.rank[1] > before[city][1]

        risen = [city for city in covered if any(worse(a, city) for a in live)]
        candidates = [a for a in live if any(worse(a, city) for city in covered)] or live
        speaking = max(candidates, key=lambda a: (a.rank, a.sent, a.end, a.id))
        here = [c for c in covered if worse(speaking, c)] or [c for c in covered if c in speaking.cities]
        city = known.city if known and known.city in here else here[0]
        words = (speaking.event, speaking.headline, city, tuple(c for c in covered if c != city))
        end = min(speaking.end, now + ttl)
        name = main.name if main else root
        ids = frozenset(a.id for a in live)
        ranks = {c: [a.rank for a in live if c in a.cities] for c in covered}
        cities = {c: (max(s for s, _ in several), max(e for _, e in several)) for c, several in ranks.items()}
        note = Note(name, ids, cities, newest, city, words, end, now, speaking.id)
        if main is None:
            return [Act(name, "show", True, note)]
        if ids == (frozenset().union(*(n.alerts for n in standing)) if standing else main.alerts):
            return []
        if known is None:
            return [Act(name, "show", True, note)]
        sound = bool(risen)
        same = words == main.words and abs(end - main.end) < MINUTE and main.gone is None
        quiet = not sound and same and not spare
        return [Act(name, "replace", sound, note, quiet), *(_away(other, sent) for other in spare)]


def _away(note: Note, sent: int) -> Act:
    left = Note(**{**vars(note), "alerts": frozenset(), "gone": sent})
    return Act(note.name, "retract", False, left)
