"""Whether each alert told every user of its cities what it should, as loudly as it should, and nobody anything else.

The audience of a page of a run is told again from the ledger, at the number the page was read at; what was known of its
users, at the number the feed had been applied to when they were judged. What each of them is to be told then, by what they
were told before, is `model_alerts`' to say.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any, NamedTuple

from tests.support import model_alerts, oracle_context
from tests.support.model_alerts import SEVERITIES, Act, Knowledge
from tests.support.oracle_context import Standing, wants
from tests.support.oracle_messages import message_id_of, verdict
from tests.support.oracle_person import Book
from tests.support.oracle_reader import Newest, Reader
from tests.support.oracle_snapshot import Snapshot

Row = dict[str, Any]
Order = Callable[[str], Any]


def check(snapshot: Snapshot) -> list[str]:
    found: list[str] = []
    book = Book(max(snapshot.rules), snapshot.rules[max(snapshot.rules)])
    campaigns = {c["id"]: c for c in book.campaigns if c["trigger"]["type"] == "alert"}
    then = oracle_context.check(snapshot, campaigns, found)
    runs = {run["run_id"]: run for run in snapshot.runs if run["context"] == "alert"}
    pages = [Page(row, runs[row["run_id"]], upto) for row, upto in pages_of(snapshot, runs, found)]
    # in the order in which they were planned
    pages.sort(key=lambda page: (page.row["planned_at"], page.run["created_at"], page.run["context_offset"]))
    messages = [m for m in snapshot.messages if m["run_id"] and m["campaign"] in campaigns]
    of_user: defaultdict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for message in messages:
        of_user[message["campaign"], message["user_id"]][message["occurrence"]] = message
    ledgers, newest = ledgers_of(snapshot), Newest(snapshot)
    began = {(run["campaign"], run["occurrence"]): run["began_at"] for run in runs.values()}
    for campaign in campaigns.values():
        told = Told(snapshot, book, newest, campaign, then, ledgers, of_user, began)
        for page in pages:
            if page.run["campaign"] == campaign["id"]:
                found += told.page(page)
    found += [
        f"message {m['message_id']} of user {m['user_id']} should not be: it is {m['occurrence']}, {m['action']}"
        for several in of_user.values()
        for m in several.values()
    ]
    return found


class Page(NamedTuple):
    """A page of a run, and where the next one begins (None: it is the last)."""

    row: Row
    run: Row
    upto: str | None

    def has(self, user: str) -> bool:
        return bool(user > self.row["after"] and (self.upto is None or user <= self.upto))


def pages_of(
    snapshot: Snapshot, runs: Container[str], found: list[str], order: Order = str
) -> Iterator[tuple[Row, str | None]]:
    """The pages of these runs, each with where the next one begins (None: it is the last), by `order` of
    where they begin. Every run must be expanded over every shard."""
    shards = {(r["run_id"], r["shard"]): r["done"] for r in snapshot.run_shards}
    pages: defaultdict[tuple[str, int], list[Row]] = defaultdict(list)
    for page in snapshot.run_pages:
        if page["run_id"] in runs:
            pages[page["run_id"], page["shard"]].append(page)
    for run in snapshot.runs:
        run_id = run["run_id"]
        for shard in range(snapshot.shards) if run_id in runs else ():
            if not shards.get((run_id, shard)):
                found.append(f"run {run_id} is not expanded over shard {shard}")
            elif min((page["after"] for page in pages[run_id, shard]), default=None) != "":
                found.append(f"run {run_id} has no first page in shard {shard}")
    for ones in pages.values():
        ones.sort(key=lambda page: order(page["after"]))
        for page, following in zip(ones, [*ones[1:], None], strict=True):
            yield page, following["after"] if following else None


def ledgers_of(snapshot: Snapshot) -> dict[int, Ledger]:
    return {shard: Ledger(r for r in snapshot.ledger if r["shard"] == shard) for shard in range(snapshot.shards)}


class Told:
    """One campaign's pages, told again one after the other."""

    def __init__(
        self,
        snapshot: Snapshot,
        book: Book,
        newest: Newest,
        campaign: Row,
        then: dict[int, Standing],
        ledgers: dict[int, Ledger],
        messages: dict[tuple[str, str], dict[str, Row]],
        began: dict[tuple[str, str], int],
    ) -> None:
        self._salt, self._book, self._campaign, self._newest = snapshot.salt, book, campaign, newest
        self._then, self._ledgers, self._messages, self._began = then, ledgers, messages, began
        self._runs = [r for r in snapshot.runs if r["campaign"] == campaign["id"] and r["context"] == "alert"]
        self._known: defaultdict[str, dict[str, Knowledge]] = defaultdict(dict)
        self._last: defaultdict[str, dict[str, tuple[int, str]]] = defaultdict(dict)
        """By user and name of a chain, when the last message was planned, and why it was not sent."""
        self._on: dict[tuple[str, str], str] = {}
        """By user and name of a chain, the device that shows it, or was to."""
        self._unsure: defaultdict[str, set[str]] = defaultdict(set)
        """By user, names of chains of which it cannot be told what they were known to have been told."""
        self._louder: set[str] = set()
        """Users whom something never reached that should have sounded: what took its place may do so instead."""

    def page(self, page: Page) -> list[str]:
        row, run = page.row, page.run
        standing, ledger = self._then[row["context_offset"]], self._ledgers[row["shard"]]
        root = standing.root[run["occurrence"]]
        alike = [r for r in self._runs if standing.root.get(r["occurrence"]) == root]
        alike = [r for r in alike if r["context_offset"] <= row["context_offset"]]
        order = (run["created_at"], run["context_offset"])
        if row["after"] == "" and any((r["created_at"], r["context_offset"]) > order for r in alike):
            return []
        names = {r["occurrence"] for r in alike}
        name = min(names, key=lambda one: (self._began[run["campaign"], one], one))
        alerts = [a for a in standing.in_force.values() if standing.root[a.id] == root]
        cities = {city for alert in alerts for city in alert.cities}
        ties = ledger.all_ties(cities, run["relations"], row["seq"])
        told = {user for user, known in self._known.items() if not names.isdisjoint(known)}
        found = []
        for user in sorted(ties.keys() | told):
            if not page.has(user) or not ledger.of_shard(user):
                continue
            if not names.isdisjoint(self._unsure[user]):
                self._set_aside(run, user)
                continue
            reader = ledger.reader(user, row["heard_seq"])
            if reader.merged:
                continue
            found += self._user(page, user, name, names, alerts, ties.get(user, []), reader)
        return found

    def _set_aside(self, run: Row, user: str) -> None:
        written = self._messages[self._campaign["id"], user]
        for occurrence in [o for o, message in written.items() if message["run_id"] == run["run_id"]]:
            del written[occurrence]

    def _user(
        self,
        page: Page,
        user: str,
        root: str,
        names: set[str],
        alerts: list[oracle_context.Alert],
        ties: list[tuple[int, str, int]],
        reader: Reader,
    ) -> list[str]:
        run, campaign = page.run, self._campaign
        least = min((SEVERITIES[s] for s in campaign["trigger"].get("severity", ())), default=0)
        known = Knowledge({name: k.notes[name] for name, k in self._known[user].items() if name in names}, least)
        searched = [city for city, relation, _ in ties if relation == "searched"]
        relations = run["relations"]
        written = self._messages[campaign["id"], user]
        now = next((m["planned_at"] for m in written.values() if m["run_id"] == run["run_id"]), page.row["planned_at"])
        acts = known.acts(
            root,
            [
                model_alerts.Alert(a.id, a.event, a.severity, a.headline, a.sent_at, a.valid_until, a.cities)
                for a in alerts
            ],
            reader.home if "default" in relations else None,
            [*(reader.added if "added" in relations else ()), *searched],
            lambda alert: wants(campaign["trigger"], alert),
            now,
            run["occurred_at"],
            campaign.get("ttl_seconds", 86_400) * 1000,
        )
        last = max((told for name, told in self._last[user].items() if name in names), default=(0, ""))
        found, not_sent = [], last[1]
        for act in acts:
            message = written.pop(f"{act.name}#{run['context_id']}", None)
            if message is None:
                if not act.quiet and (not not_sent or not_sent != _why(reader, self._book, campaign)):
                    found.append(
                        f"user {user} is in the audience of run {run['run_id']} ({run['context_id']}) and was not told:"
                        f" {act.action}, sound {act.sound}"
                    )
                continue
            found += self._message(message, act, page, ties, reader, alerts)
            if message["reason"] == "superseded" or message["state"] == "unknown":
                self._louder.add(user)
            elif message["state"] == "failed" or (message["state"] == "suppressed" and message["token"]):
                # whether it was known to be lost when the next one was planned cannot be told
                self._unsure[user].add(act.name)
            unsent = message["state"] == "suppressed" and not message["token"]
            self._last[user][act.name] = (message["planned_at"], message["reason"] if unsent else "")
            if unsent:
                continue
            self._on[user, act.name] = message["device_id"]
            self._known[user].setdefault(act.name, Knowledge()).learns(act)
        return found

    def _message(
        self,
        message: Row,
        act: Act,
        page: Page,
        ties: list[tuple[int, str, int]],
        reader: Reader,
        alerts: list[oracle_context.Alert],
    ) -> list[str]:
        run, name, campaign = page.run, message["message_id"], self._campaign
        known, tokens = reader.as_known(campaign), dict(reader.devices)
        on = self._on.get((message["user_id"], act.name), "")
        if act.action != "show" and on in tokens:  # it goes where its notification is
            tokens[on] = tokens.pop(on)
        speaking = next((a for a in alerts if a.id == act.note.of), None)
        away = act.action == "retract"
        occurred = run["occurred_at"] if away or speaking is None else speaking.sent_at
        end = act.note.end if away or speaking is None else speaking.valid_until
        known = known._replace(devices=list(tokens.values()), meant=known.meant or away)
        found = verdict(message, self._book, self._salt, campaign, known, self._newest, occurred, end)
        should: Row = {
            "action": act.action,
            "chain": act.name,
            "cause_seq": 0 if away and not ties else _entered(ties, 0 if away else act.note.city),
        }
        if message["campaign_version"] == campaign.get("version", 1):
            began = self._began[campaign["id"], act.name]
            should["message_id"] = message_id_of(campaign, message["user_id"], message["occurrence"], began)
        if message["collapse_id"]:
            head = re.sub(r"[^A-Za-z0-9_-]", "", campaign["id"])[:24]
            shown = hashlib.blake2b(f"{campaign['id']}\x1f{act.name}".encode(), digest_size=12).hexdigest()
            should["collapse_id"] = f"{head}.{shown}"
            seconds = min(campaign.get("ttl_seconds", 86_400), (end - message["planned_at"]) // 1000)
            expires = message["planned_at"] + seconds * 1000
            # what is taken away had its end in whole seconds, too
            near = away and abs(message["expires_at"] - expires) <= 1000
            should["expires_at"] = message["expires_at"] if near else expires
        found += [f"message {name} has {k} {message[k]}, should have {v}" for k, v in should.items() if message[k] != v]
        if message["sound"] != act.sound and not (message["sound"] and message["user_id"] in self._louder):
            found.append(f"message {name} of user {message['user_id']} has sound {message['sound']}")
        return found


def _why(reader: Reader, book: Book, campaign: Row) -> str:
    """Why nothing is sent to the user whatever it is."""
    if not reader.as_known(campaign).meant:
        return "not_in_audience"
    if reader.consent is False or (reader.consent is None and "push" in book.consent_asked):
        return "no_consent"
    return "" if reader.devices else "no_device"


def _entered(ties: list[tuple[int, str, int]], city: int) -> int:
    return next((seq for of, _, seq in ties if of == city), 0) or next((seq for _, _, seq in ties), 0)


class Ledger:
    """A shard's rows as a page of a run looks at them: by city, and by user."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._by_city: defaultdict[int, list[Row]] = defaultdict(list)
        self._by_user: defaultdict[str, list[Row]] = defaultdict(list)
        for row in sorted(rows, key=lambda r: r["seq"]):
            self._by_user[row["user_id"]].append(row)
            if row["kind"] in ("cohort_entered", "cohort_exited"):
                self._by_city[row["payload"]["city_id"]].append(row)

    def of_shard(self, user: str) -> bool:
        return user in self._by_user

    def ties(self, city: int, relation: str, seq: int) -> dict[str, int]:
        """Users of the city at a number, and the row that brought each there."""
        there: dict[str, int] = {}
        for row in self._by_city.get(city, []):
            if row["seq"] > seq:
                break
            if row["payload"]["relation"] == relation:
                there.pop(row["user_id"], None)
                if row["kind"] == "cohort_entered":
                    there[row["user_id"]] = row["seq"]
        return there

    def all_ties(self, cities: Iterable[int], relations: list[str], seq: int) -> dict[str, list[tuple[int, str, int]]]:
        """Users tied to any of the cities at a number, with (city, relation, the row that brought them there); a default
        city comes before the others, a lesser id before a greater one."""
        found: defaultdict[str, list[tuple[int, str, int]]] = defaultdict(list)
        for relation in sorted(relations, key=lambda one: one != "default"):
            for city in sorted(cities):
                for user, entered in self.ties(city, relation, seq).items():
                    found[user].append((city, relation, entered))
        return {user: sorted(ties, key=lambda t: (t[1] != "default", t[0])) for user, ties in found.items()}

    def reader(self, user: str, seq: int) -> Reader:
        known = Reader()
        for row in self._by_user[user]:
            if row["seq"] <= seq:
                known.takes(row)
        return known
