"""Whether each alert told every user of its cities, and each user once per chain of alerts.

The audience of a page of a run is told again from the ledger, at the number the page was read at; what was known of its
users, at the number the feed had been applied to when they were judged.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any, NamedTuple

from tests.support import oracle_context
from tests.support.oracle_messages import Known, Reader, message_id_of, verdict
from tests.support.oracle_person import Book
from tests.support.oracle_snapshot import Snapshot

Order = Callable[[str], Any]


class Audience(NamedTuple):
    """One page of a run: who was in it, and how they were known when they were judged."""

    page: dict[str, Any]
    run: dict[str, Any]
    members: dict[str, int]
    """User → the ledger row that made them one."""
    known: dict[str, Known]
    """By user, of those who were members even then."""


def check(snapshot: Snapshot) -> list[str]:
    found: list[str] = []
    book = Book(max(snapshot.rules), snapshot.rules[max(snapshot.rules)])
    campaigns = {c["id"]: c for c in book.campaigns if c["trigger"]["type"] == "alert"}
    then = oracle_context.check(snapshot, campaigns, found)
    audiences = _audiences(snapshot, campaigns, found)
    messages = [m for m in snapshot.messages if m["run_id"] and m["campaign"] in campaigns]
    by_user: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for message in messages:
        by_user[message["user_id"], message["campaign"]].append(message)
    seen = {}
    for audience in audiences:
        if audience.run["campaign"] not in campaigns:
            continue
        chain = then[audience.page["context_offset"]]
        for user in sorted(audience.known):
            seen[audience.run["run_id"], user] = audience
            if not any(_tells(m, audience, chain) for m in by_user[user, audience.run["campaign"]]):
                found.append(
                    f"user {user} is in the audience of run {audience.run['run_id']} ({audience.run['context_id']})"
                    f" since {audience.members[user]} and was not told"
                )
    for message in messages:
        whose = seen.get((message["run_id"], message["user_id"]))
        if whose is None:
            found.append(f"message {message['message_id']} should not be: its user is not in its run's audience")
        else:
            found += _message(message, whose, campaigns[message["campaign"]], book, snapshot.salt)
    for (user, campaign), several in by_user.items():
        found += _repeated(user, campaign, several, seen, then)
    return found


def _tells(message: dict[str, Any], audience: Audience, chain: dict[str, str]) -> bool:
    """Whether the message was there when the page was planned, and told of what was then the same chain."""
    one, other = message["occurrence"], audience.run["occurrence"]
    return bool(chain.get(one, one) == chain.get(other, other) and message["planned_at"] <= audience.page["planned_at"])


def _repeated(
    user: str,
    campaign: str,
    messages: list[dict[str, Any]],
    seen: dict[tuple[str, str], Audience],
    then: dict[int, dict[str, str]],
) -> Iterator[str]:
    """Pairs of messages of which the later one was planned when both chains were known to be one."""
    for number, one in enumerate(messages):
        for other in messages[:number]:
            pages = [seen[m["run_id"], user].page for m in (one, other) if (m["run_id"], user) in seen]
            chain = then[max((page["context_offset"] for page in pages), default=-1)]
            first, second = (chain.get(m["occurrence"], m["occurrence"]) for m in (one, other))
            if first == second and one["campaign_version"] == other["campaign_version"]:
                told = f"{other['message_id']} and {one['message_id']}"
                yield f"user {user} was told twice of chain {first} by campaign {campaign}: {told}"


def _message(message: dict[str, Any], audience: Audience, campaign: dict[str, Any], book: Book, salt: str) -> list[str]:
    run, user, name = audience.run, message["user_id"], message["message_id"]
    valid_until = run["valid_until"]
    found = verdict(message, book, salt, campaign, audience.known[user], run["occurred_at"], valid_until)
    if (message["cause_seq"], message["occurrence"]) != (audience.members[user], run["occurrence"]):
        found.append(f"message {name} names {message['cause_seq']} as its cause, not {audience.members[user]}")
    if message["campaign_version"] == campaign.get("version", 1):
        should = message_id_of(campaign, user, run["occurrence"], run["began_at"])
        if name != should:
            found.append(f"message {name} of chain {run['occurrence']} should be {should}")
    if message["collapse_id"]:
        head = re.sub(r"[^A-Za-z0-9_-]", "", campaign["id"])[:24]
        shown = hashlib.blake2b(f"{campaign['id']}\x1f{run['occurrence']}".encode(), digest_size=12).hexdigest()
        if message["collapse_id"] != f"{head}.{shown}":
            found.append(f"message {name} has the collapse id {message['collapse_id']}, should have {head}.{shown}")
        seconds = min(campaign.get("ttl_seconds", 86_400), (valid_until - message["planned_at"]) // 1000)
        if message["expires_at"] != message["planned_at"] + seconds * 1000:
            found.append(f"message {name} ends at {message['expires_at']}, its alert at {valid_until}")
    return found


def _audiences(snapshot: Snapshot, campaigns: dict[str, dict[str, Any]], found: list[str]) -> list[Audience]:
    """Every page of every alert's run, told again from the ledger."""
    runs = {run["run_id"]: run for run in snapshot.runs if run["context"] == "alert"}
    ledgers = ledgers_of(snapshot)
    return [
        _audience(page, upto, runs[page["run_id"]], ledgers[page["shard"]], campaigns)
        for page, upto in pages_of(snapshot, runs, found)
    ]


def pages_of(
    snapshot: Snapshot, runs: Container[str], found: list[str], order: Order = str
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The pages of these runs, each with where the next one begins (None: it is the last), by `order` of
    where they begin. Every run must be expanded over every shard."""
    shards = {(r["run_id"], r["shard"]): r["done"] for r in snapshot.run_shards}
    pages: defaultdict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
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


class Ledger:
    """A shard's rows as a page of a run looks at them: by city, and by user."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self.by_city: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        self.by_user: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in sorted(rows, key=lambda r: r["seq"]):
            self.by_user[row["user_id"]].append(row)
            if row["kind"] in ("cohort_entered", "cohort_exited"):
                self.by_city[row["payload"]["city_id"]].append(row)

    def ties(self, city: int, relation: str, seq: int) -> dict[str, int]:
        """Users of the city at a number, and the row that brought each there."""
        there: dict[str, int] = {}
        for row in self.by_city.get(city, []):
            if row["seq"] > seq:
                break
            if row["payload"]["relation"] == relation:
                there.pop(row["user_id"], None)
                if row["kind"] == "cohort_entered":
                    there[row["user_id"]] = row["seq"]
        return there

    def reader(self, user: str, seq: int) -> Reader:
        known = Reader()
        for row in self.by_user[user]:
            if row["seq"] <= seq:
                known.takes(row)
        return known


def _audience(
    page: dict[str, Any], upto: str | None, run: dict[str, Any], ledger: Ledger, campaigns: dict[str, dict[str, Any]]
) -> Audience:
    cities = set(run["city_ids"])
    chosen: dict[str, tuple[str, int]] = {}
    # a user's default city comes before the others, a lesser id before a greater one
    for relation in sorted(run["relations"], key=lambda r: r != "default"):
        for city in sorted(cities):
            for user, entered in ledger.ties(city, relation, page["seq"]).items():
                if user > page["after"] and (upto is None or user <= upto):
                    chosen.setdefault(user, (relation, entered))
    known = {}
    for user, (relation, _) in chosen.items():
        reader = ledger.reader(user, page["heard_seq"])
        if _still(relation, reader, cities):
            known[user] = reader.as_known(campaigns.get(run["campaign"], {}))
    return Audience(page, run, {user: entered for user, (_, entered) in chosen.items()}, known)


def _still(relation: str, reader: Reader, cities: set[int]) -> bool:
    """Whoever left meanwhile is not told; searches are not known to the notifier."""
    if relation == "default":
        return reader.home in cities
    return not reader.added.isdisjoint(cities) if relation == "added" else True
