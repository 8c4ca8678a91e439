"""What each phone shows at each moment, as a plain model says: alerts and users are read, and nothing of the product.

It reads GeoJSON as the National Weather Service posts it. Chains are told by following references; what is in force is
what nothing refers to and has not ended; whom it concerns and what they are told by what they know: `model_alerts`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from shared.gazetteer import load
from tests.support.model_alerts import SEVERITIES, Alert, Knowledge, Note
from tests.support.polygons import cities_in

MARINE = ("AM", "AN", "GM", "LC", "LE", "LH", "LM", "LO", "LS", "PH", "PK", "PM", "PS", "PZ", "SL")
SEQUENCE: dict[str, Any] = json.loads((Path(__file__).parent / "alert_sequence.json").read_text())


@dataclass
class User:
    """Cities by id; `reachable`: has a phone and did not opt out."""

    default: int | None = None
    added: set[int] = field(default_factory=set)
    searched: set[int] = field(default_factory=set)
    reachable: bool = True


class Pushed(NamedTuple):
    user: str
    action: str
    sound: bool


class Phones:
    """All alerts so far, and what each user knows. Campaign: severe alerts, for default and added cities."""

    def __init__(self, users: dict[str, User], ttl: int = 604_800_000) -> None:
        self.users, self._ttl = users, ttl
        self._alerts: dict[str, Alert] = {}
        self._sent: dict[str, int] = {}
        self._links: defaultdict[str, set[str]] = defaultdict(set)
        self._replaced: set[str] = set()
        self._known: defaultdict[str, dict[str, Note]] = defaultdict(dict)

    def take(self, features: Iterable[dict[str, Any]], now: int) -> list[Pushed]:
        """What goes out when these are read together, at that moment."""
        moved: dict[frozenset[str], int] = {}
        for feature in features:
            properties = feature["properties"]
            name = properties["id"]
            if properties["status"] != "Actual" or name in self._sent:
                continue
            self._sent[name] = _instant(properties["sent"])
            for reference in properties["references"]:
                other = reference["identifier"]
                self._sent.setdefault(other, _instant(reference["sent"]))
                self._links[name].add(other)
                self._links[other].add(name)
                self._replaced.add(other)
            alert = alert_of(feature)
            if properties["messageType"] != "Cancel" and properties["urgency"] != "Past" and alert.end > now:
                self._alerts[name] = alert
            # chains may meet within the batch; each moves on by the last of it
            whole = self._chain(name)
            moved = {chain: sent for chain, sent in moved.items() if chain.isdisjoint(whole)}
            moved[whole] = self._sent[name]
        out: list[Pushed] = []
        for chain, sent in moved.items():
            for user in self.users:
                out += self._tell(user, chain, sent, now)
        return out

    def _tell(self, name: str, chain: frozenset[str], sent: int, now: int) -> list[Pushed]:
        user = self.users[name]
        live = [alert for i, alert in self._alerts.items() if i in chain and i not in self._replaced]
        root = min(chain, key=lambda i: (self._sent[i], i))
        knowledge = Knowledge({k: note for k, note in self._known[name].items() if k in chain}, SEVERITIES["Severe"])
        acts = knowledge.acts(root, live, user.default, user.added, _severe, now, sent, self._ttl)
        out = []
        for act in acts:
            if user.reachable and not act.quiet:
                self._known[name][act.name] = act.note
                out.append(Pushed(name, act.action, act.sound))
        return out

    def _chain(self, name: str) -> frozenset[str]:
        found, edge = {name}, [name]
        while edge:
            for other in self._links[edge.pop()] - found:
                found.add(other)
                edge.append(other)
        return frozenset(found)

    def screens(self, now: int) -> dict[str, set[tuple[str, str]]]:
        """User → the (title, body) of each notification that stands; users without any are left out."""
        shown = {
            name: {_text(note) for note in notes.values() if note.stands(now)} for name, notes in self._known.items()
        }
        return {name: texts for name, texts in shown.items() if texts}


def _severe(alert: Alert) -> bool:
    return alert.severity in ("Severe", "Extreme")


def _text(note: Note) -> tuple[str, str]:
    """As the English template of the pack says it."""
    event, headline, city, others = note.words
    names = load()

    def name(city_id: int) -> str:
        place = names.get(city_id)
        assert place is not None
        return place.name

    place = names.get(city)
    assert place is not None
    more = f" (+ {', '.join(name(other) for other in others)})" if others else ""
    return f"{event} — {place.name}, {place.state}{more}", headline


def alert_of(feature: dict[str, Any]) -> Alert:
    told, places = feature["properties"], load()
    cities: set[int] = set()
    marine = all(zone[:2] in MARINE for zone in told["geocode"]["UGC"])
    if feature.get("geometry") and not marine:
        cities = set(cities_in(feature["geometry"]))
    elif not marine:
        cities = {city for code in told["geocode"]["SAME"] for city in places.by_same(code)}
    end = min(_instant(told[k]) for k in ("expires", "ends") if told.get(k))
    headline = told.get("headline") or told["event"]
    return Alert(told["id"], told["event"], told["severity"], headline, _instant(told["sent"]), end, frozenset(cities))


def _instant(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


# -- the authored sequence


def city(name: str) -> int:
    found = load().normalise(SEQUENCE["cities"][name]["city"])
    assert found is not None
    return found


def features_of(step: dict[str, Any], began: int, sent: dict[str, str]) -> list[dict[str, Any]]:
    """The step's alerts as the feed would have them; `sent` gathers when each was sent, for later references."""

    def at(minute: float) -> str:
        return datetime.fromtimestamp(began / 1000 + minute * 60).astimezone().isoformat()

    found = []
    for told in step["alerts"]:
        sent[told["id"]] = at(told.get("sent", step["minute"]))
        same = [SEQUENCE["cities"][name]["same"] for name in told.get("same", ())] + told.get("waters", [])
        properties = {
            "id": told["id"],
            "event": told["event"],
            "headline": f"{told['event']} until {told['expires'] // 60}:{told['expires'] % 60:02}",
            "status": told.get("status", "Actual"),
            "messageType": told.get("type", "Alert"),
            "severity": told["severity"],
            "urgency": "Immediate",
            "certainty": "Observed",
            "areaDesc": ", ".join(told.get("same", ())),
            "sent": sent[told["id"]],
            "expires": at(told["expires"]),
            "references": [{"identifier": other, "sent": sent[other]} for other in told.get("refs", ())],
            "geocode": {"SAME": same, "UGC": [f"{'PZZ' if told.get('waters') else 'TXC'}{code[3:]}" for code in same]},
        }
        ring = SEQUENCE["polygons"].get(told.get("polygon"))
        geometry = {"type": "Polygon", "coordinates": [ring]} if ring else None
        found.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return found
