"""Whether each alert was judged rightly, joined to its chain, and set going what waits for it.

Alerts are read again from `context.events.v1`, in its order; chains and runs are told again from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from shared.gazetteer import Gazetteer, load
from tests.support.oracle_snapshot import Snapshot
from tests.support.polygons import cities_in


class Alert(NamedTuple):
    id: str
    offset: int
    received_at: int
    names: list[tuple[str, int]]
    """Itself and what it refers to, each with when it was sent (0: not told)."""
    cities: frozenset[int]
    severity: str
    event: str
    headline: str
    real: bool
    """Whether it says something of the weather at all."""
    speaks: bool
    """Whether it is a real one that warns of something to come."""
    sent_at: int
    valid_until: int


class Standing(NamedTuple):
    """Where all chains stand: the chain of every alert, and the alerts that are in force unless they have ended."""

    root: dict[str, str]
    in_force: dict[str, Alert]


class Chains:
    """Which alerts are one chain. Its id is the alert sent first among the ids it was joined of."""

    def __init__(self) -> None:
        self.root: dict[str, str] = {}
        self.sent: dict[str, int] = {}
        self.in_force: dict[str, Alert] = {}
        self.replaced: set[str] = set()
        self.runs: set[tuple[str, str]] = set()

    def stands(self, alert: Alert, matched: bool) -> None:
        """A real one, heard for the first time: what it refers to is in force no more, whenever that comes."""
        self.replaced |= {name for name, _ in alert.names[1:] if name != alert.id}
        if matched:
            self.in_force[alert.id] = alert
        for name in self.replaced:
            self.in_force.pop(name, None)

    def followed(self, campaign: str, root: str) -> bool:
        return any(name == campaign and self.root[of] == root for name, of in self.runs)

    def takes(self, alert: Alert) -> str:
        roots = {self.root[name] for name, _ in alert.names if name in self.root}
        for name, sent in alert.names:
            self.sent.setdefault(name, sent)
        if roots:
            oldest = min(roots, key=lambda name: (self.sent[name], name))
        else:
            oldest = min(alert.names, key=lambda one: (one[1] <= 0, one[1], one[0]))[0]
        for name, root in self.root.items():
            if root in roots:
                self.root[name] = oldest
        self.root.update({name: oldest for name, _ in alert.names if name not in self.root})
        return oldest


def check(snapshot: Snapshot, campaigns: dict[str, dict[str, Any]], found: list[str]) -> dict[int, Standing]:
    """Compare events, chains and runs; how all chains stood, as of each offset."""
    alerts = [alert for alert in _alerts(snapshot) if alert.offset <= snapshot.context_read]
    events = {e["context_id"]: e for e in snapshot.context_events if e["kind"] in ("alert", "nws")}
    runs = {(r["campaign"], r["context_id"]): r for r in snapshot.runs}
    chains, first = Chains(), set()
    then: dict[int, Standing] = {-1: Standing({}, {})}
    by_offset = {alert.offset: alert for alert in alerts}
    for offset in range(snapshot.context_read + 1):
        alert = by_offset.get(offset)
        if alert is not None:
            root = chains.takes(alert)
            if alert.id not in first:
                first.add(alert.id)
                found += _event(alert, events.get(alert.id), snapshot.near)
                speaks = alert.id in events and events[alert.id]["verdict"] == "matched"
                if alert.real:
                    chains.stands(alert, speaks)
                for campaign in campaigns.values():
                    follows = alert.real and chains.followed(campaign["id"], root)
                    wanted = follows or (speaks and wants(campaign["trigger"], alert))
                    run = runs.pop((campaign["id"], alert.id), None)
                    found += _run(alert, root, chains, campaign, run, wanted, speaks)
                    if wanted:
                        chains.runs.add((campaign["id"], root))
        then[offset] = then[offset - 1]
        if alert is not None:
            then[offset] = Standing(dict(chains.root), dict(chains.in_force))
    found += [f"context event {name} is in no log" for name in events.keys() - first]
    found += [
        f"context event {name} is kept in chain {event['chain_id']}, should be in {chains.root.get(name)}"
        for name, event in events.items()
        if event["chain_id"] != chains.root.get(name)
    ]
    found += [f"run {run['run_id']} should not be" for (name, _), run in runs.items() if name in campaigns]
    kept = {row["alert_id"]: row["chain_id"] for row in snapshot.chains}
    found += [
        f"alert {name} is in chain {kept.get(name)}, should be in {chains.root.get(name)}"
        for name in sorted(kept.keys() | chains.root.keys())
        if kept.get(name) != chains.root.get(name)
    ]
    return then


def _event(alert: Alert, event: dict[str, Any] | None, near: int) -> list[str]:
    if event is None:
        return [f"alert {alert.id} @{alert.offset} was not judged"]
    found = []
    ends_in = alert.valid_until - alert.received_at
    matched = event["verdict"] == "matched"
    if matched != (alert.speaks and bool(alert.cities) and ends_in > 0) and abs(ends_in) > near:
        found.append(f"alert {alert.id} was judged {event['verdict']}")
    if event["context_offset"] != alert.offset:
        found.append(f"alert {alert.id} was judged as of {event['context_offset']}, was first told at {alert.offset}")
    return found


def wants(trigger: dict[str, Any], alert: Alert) -> bool:
    severity, event = trigger.get("severity"), trigger.get("event")
    return (not severity or alert.severity in severity) and (not event or alert.event in event)


def _run(
    alert: Alert, root: str, chains: Chains, campaign: dict[str, Any], run: dict[str, Any] | None, wanted: bool,
    speaks: bool,
) -> list[str]:  # fmt: skip
    what = f"the run of campaign {campaign['id']} for alert {alert.id}"
    if run is None or not wanted:
        return [] if (run is None) == (not wanted) else [f"{what} {'is missing' if wanted else 'should not be'}"]
    should = {
        "occurrence": root,
        "began_at": chains.sent[root] or alert.sent_at,
        "context_offset": alert.offset,
        "city_ids": sorted(alert.cities) if speaks else [],
        "relations": campaign["trigger"].get("relations", ["default", "added"]),
        "occurred_at": alert.sent_at,
        "valid_until": alert.valid_until,
    }
    return [f"{what}: {name} is {run[name]}, should be {v}" for name, v in should.items() if run[name] != v]


# -- reading


def _alerts(snapshot: Snapshot) -> Iterator[Alert]:
    """What can be read of the log; what cannot is no alert."""
    for record in snapshot.context:
        told = json.loads(record.value or b"{}")
        body = told["body"]
        try:
            if told["kind"] not in ("alert", "nws"):
                continue
            read = _from_feed(body) if told["kind"] == "nws" else _from_contract(body)
        except (KeyError, TypeError, ValueError):
            continue
        alert = Alert(told["id"], record.offset, told["received_at"], *read)
        yield alert if alert.real else alert._replace(names=alert.names[:1])


_Read = tuple[list[tuple[str, int]], frozenset[int], str, str, str, bool, bool, int, int]


def _from_contract(body: dict[str, Any]) -> _Read:
    data, replaces = body["data"], body.get("replaces") or []
    if body["kind"] != "alert":
        raise ValueError(body["kind"])
    sent_at = instant(data.get("sent_at") or body["starts_at"])
    cities = frozenset(city for area in body["areas"] for city in cities_of(area))
    kind = data.get("message_type") or ("Update" if replaces else "Alert")
    return (
        [(body["id"], sent_at), *((name, 0) for name in replaces)],
        cities,
        body.get("severity") or "Unknown",
        data["event"],
        data.get("headline") or data["event"],
        *_speaks(data.get("status") or "Actual", kind, data.get("urgency")),
        sent_at,
        instant(body["ends_at"]),
    )


def _from_feed(feature: dict[str, Any]) -> _Read:
    properties, geometry = feature["properties"], feature.get("geometry")
    sent_at = instant(properties["sent"])
    names = [(properties["id"], sent_at)]
    names += [
        (one["identifier"], instant(one["sent"]) if one.get("sent") else 0)
        for one in properties.get("references") or []
    ]
    ends = [instant(properties[name]) for name in ("expires", "ends") if properties.get(name)]
    codes = (properties.get("geocode") or {}).get("SAME") or []
    return (
        names,
        frozenset(cities_in(geometry) if geometry else (c for code in codes for c in places().by_same(code))),
        properties.get("severity") or "Unknown",
        properties["event"].strip(),
        (properties.get("headline") or "").strip() or properties["event"].strip(),
        *_speaks(properties["status"], properties["messageType"], properties.get("urgency")),
        sent_at,
        min(ends),
    )


def _speaks(status: str, kind: str, urgency: str | None) -> tuple[bool, bool]:
    real = status == "Actual" and kind in ("Alert", "Update", "Cancel")
    return real, real and kind != "Cancel" and urgency != "Past"


def cities_of(area: dict[str, Any]) -> tuple[int, ...]:
    if "polygon" in area:
        return tuple(cities_in({"type": "Polygon", "coordinates": [area["polygon"]]}))
    if "same" in area:
        return places().by_same(area["same"])
    if "city_id" in area:
        return (int(area["city_id"]),)
    if "city" in area:
        return (places().normalise(area["city"], area.get("state"), area.get("country")) or 0,)
    return places().by_state(area["state"])


@cache
def places() -> Gazetteer:
    return load()


def instant(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)
