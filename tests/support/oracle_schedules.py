"""Whether each schedule set its campaign going when its clock showed the time, and told every user of its cities once.

Forecasts are read again from `context.events.v1`; the audience of a page is told again from the ledger, at the number the
page was read at, and what was known of its users at the number the feed had been applied to when they were judged.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter, defaultdict
from datetime import datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from tests.support.oracle_alerts import ledgers_of, pages_of
from tests.support.oracle_context import cities_of, instant, places
from tests.support.oracle_messages import message_id_of, verdict
from tests.support.oracle_person import Book
from tests.support.oracle_reader import Newest, Reader
from tests.support.oracle_snapshot import Snapshot

NEVER = 1 << 62


class Forecast(NamedTuple):
    starts_at: int
    ends_at: int
    offset: int


def check(snapshot: Snapshot) -> list[str]:
    found: list[str] = []
    book = Book(max(snapshot.rules), snapshot.rules[max(snapshot.rules)])
    campaigns = {c["id"]: c for c in book.campaigns if c["trigger"]["type"] == "schedule"}
    runs = {r["run_id"]: r for r in snapshot.runs if r["context"] != "alert" and r["campaign"] in campaigns}
    for run in runs.values():
        found += _run(run, campaigns[run["campaign"]])
    messages: defaultdict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for message in snapshot.messages:
        if message["run_id"] in runs:
            messages[message["user_id"], message["campaign"], message["occurrence"]].append(message)
    found += [
        f"user {user} was told {len(several)} times of {occurrence} by campaign {campaign}"
        for (user, campaign, occurrence), several in messages.items()
        if max(Counter(m["campaign_version"] for m in several).values()) > 1
    ]
    forecasts, ledgers, newest = _forecasts(snapshot), ledgers_of(snapshot), Newest(snapshot)
    audience: dict[tuple[str, str], list[Told]] = defaultdict(list)
    for page, upto in pages_of(snapshot, runs, found, _place):
        run, ledger = runs[page["run_id"]], ledgers[page["shard"]]
        for place, entered in _members(run, ledger, page["seq"]).items():
            if not (_place(page["after"]) < place and (upto is None or place <= _place(upto))):
                continue
            _, relation, city, user = place
            reader = ledger.reader(user, page["heard_seq"])
            if reader.merged:
                continue
            holds = _holds(forecasts[city], page, snapshot.near) if run["context"] == "forecast" else (NEVER,)
            if _still(relation, reader, city) and holds:
                several = messages[user, run["campaign"], run["occurrence"]]
                if None not in holds and not any(_by(m, page) for m in several):
                    found.append(f"user {user} is in the audience of run {run['run_id']} for {city} and was not told")
                audience[run["run_id"], user].append(Told(reader, entered, holds))
    for message in (m for several in messages.values() for m in several):
        run = runs[message["run_id"]]
        met = audience[run["run_id"], message["user_id"]]
        found += _message(message, run, met, campaigns, book, snapshot.salt, newest)
    return found


def _by(message: dict[str, Any], page: dict[str, Any]) -> bool:
    """Whether a message was there when the page had been planned. One that was held is judged anew when it is let go."""
    held = message["release_at"] > 0 and message["run_id"] == page["run_id"]
    return bool(message["planned_at"] <= page["planned_at"] or held)


class Told(NamedTuple):
    """A user as a page of a run met them: what was known, what made them a member, and until when it holds."""

    reader: Reader
    entered: int
    holds: tuple[int | None, ...]


Place = tuple[bool, str, int, str]


def _place(after: str) -> Place:
    """Where a page begins: default cities first, then the others, by city and user."""
    relation, city, user = after.split(":", 2) if after else ("", "0", "")
    return (relation not in ("", "default"), relation, int(city), user)


def _run(run: dict[str, Any], campaign: dict[str, Any]) -> list[str]:
    """Whether it was seven in the zone, the zone that of the cities, and not too late."""
    trigger, zone, what = campaign["trigger"], run["zone"], f"run {run['run_id']} of {run['occurrence']}"
    found = []
    if run["created_at"] - run["occurred_at"] > campaign.get("freshness_seconds", 3600) * 1000:
        found.append(f"{what} was made too late")
    if run["context_id"]:
        return found
    if trigger.get("zone", "local") == "local":
        strangers = [c for c in run["city_ids"] if (p := places().get(c)) is None or p.timezone != zone]
        found += [f"{what} is for {zone}, where {c} is not" for c in strangers]
    elif zone != trigger["zone"]:
        found.append(f"{what} is for {zone}")
    if trigger.get("at"):
        wall = datetime.fromtimestamp(run["occurred_at"] / 1000, ZoneInfo(zone))
        meant = datetime.fromisoformat(f"{run['occurrence']}T{trigger['at']}").replace(tzinfo=ZoneInfo(zone))
        there = datetime.fromtimestamp(meant.timestamp(), ZoneInfo(zone)).strftime("%H:%M") == trigger["at"]
        if wall.date() != meant.date() or (there and wall.strftime("%H:%M") != trigger["at"]):
            found.append(f"{what} was at {wall:%Y-%m-%d %H:%M} in {zone}")
        days = trigger.get("days") or []
        if days and wall.strftime("%a").lower() not in days:
            found.append(f"{what} was on a {wall:%A}")
    return found


def _members(run: dict[str, Any], ledger: Any, seq: int) -> dict[Place, int]:
    """Ties to the run's cities at a number, and the row that made each."""
    return {
        _place(f"{relation}:{city}:{user}"): entered
        for relation in run["relations"]
        for city in run["city_ids"]
        for user, entered in ledger.ties(city, relation, seq).items()
    }


def _still(relation: str, reader: Reader, city: int) -> bool:
    if relation == "default":
        return reader.home == city
    return city in reader.added if relation == "added" else True


def _forecasts(snapshot: Snapshot) -> defaultdict[int, list[tuple[int, list[Forecast]]]]:
    """By city: what was known behind each offset. A forecast forgets what begins while it holds, and ends what it
    interrupts."""
    known: defaultdict[int, list[tuple[int, list[Forecast]]]] = defaultdict(list)
    for record in snapshot.context:
        told = json.loads(record.value or b"{}")
        if told["kind"] != "forecast":
            continue
        body = told["body"]
        new = Forecast(instant(body["starts_at"]), instant(body["ends_at"]), record.offset)
        for city in {city for area in body["areas"] for city in cities_of(area)}:
            before = known[city][-1][1] if known[city] else []
            kept = [
                one._replace(ends_at=min(one.ends_at, new.starts_at)) if one.starts_at < new.starts_at else one
                for one in before
                if not new.starts_at <= one.starts_at < new.ends_at
            ]
            known[city].append((record.offset, [*kept, new]))
    return known


def _holds(known: list[tuple[int, list[Forecast]]], page: dict[str, Any], near_ms: int) -> tuple[int | None, ...]:
    """Until when a forecast holds that held for the page; with None where it may or may not have. Empty: none did."""
    at = bisect_right([offset for offset, _ in known], page["context_offset"]) - 1
    several = known[at][1] if at >= 0 else []
    near = [f for f in several if f.starts_at - near_ms <= page["planned_at"] < f.ends_at + near_ms]
    sure = [f for f in near if f.starts_at + near_ms <= page["planned_at"] < f.ends_at - near_ms]
    return tuple(f.ends_at for f in near) + (() if sure or not near else (None,))


def _message(
    message: dict[str, Any],
    run: dict[str, Any],
    met: list[Told],
    campaigns: dict[str, dict[str, Any]],
    book: Book,
    salt: str,
    newest: Newest,
) -> list[str]:
    campaign, name = campaigns[run["campaign"]], message["message_id"]
    whose = next((told for told in met if told.entered == message["cause_seq"]), None)
    if whose is None:
        return [f"message {name} should not be: its user is not in its run's audience"]
    ends = [end for end in (*whose.holds, run["valid_until"]) if end is not None]
    valid_until = min(ends)
    known = whose.reader.as_known(campaign)
    found = verdict(message, book, salt, campaign, known, newest, run["occurred_at"], valid_until)
    if message["campaign_version"] == campaign.get("version", 1):
        should = message_id_of(campaign, message["user_id"], run["occurrence"], run["began_at"])
        if name != should:
            found.append(f"message {name} of {run['occurrence']} should be {should}")
    if message["state"] == "sent" and not message["release_at"] and message["expires_at"] > valid_until:
        found.append(f"message {name} ends at {message['expires_at']}, what it tells of at {valid_until}")
    return found
