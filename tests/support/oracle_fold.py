"""What every user of a shard should be, from its first decisions and its recorded ticks; compared with what is kept."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from shared.contracts.events import Accepted, Erase, Moved, Readmit, Rejected
from shared.contracts.identifiers import shard_of, suppression_hash
from tests.support import oracle_days
from tests.support.oracle_log import Decided
from tests.support.oracle_merge import Message, absorb, in_words, leave, told_of, veiled
from tests.support.oracle_person import Book, Person, Row
from tests.support.oracle_snapshot import NO_SHOP, OVERWRITTEN, SHOP, Snapshot, cold, hot

FEED_ONLY = {
    "device_set", "device_removed", "profile_set", "consent_set", "assignment_set", "opened", "session_began", "moment",
    "merge_sent",
}  # fmt: skip
_LAID_DOWN: dict[str, Any] = {
    "stage": "", "activity": "", "segments": [], "searched": [], "added": [], "default_city": 0, "orders": 0,
    "bitmap": 0, "devices": [], "claims": [], "due_at": -1, "known": False,
}  # fmt: skip
NOT_BROUGHT = "has not been brought"
UNNAMED = "bug:record"
ROLES = ((1, "customer"), (2, "repeat"), (4, "loyal"))


class Gone(NamedTuple):
    """A user who was erased, as they were then (None: nobody knew them), and the reasons of their dead letters."""

    person: Person | None
    at: int
    erasure_id: str
    letters: list[str]


class Exchange:
    """What shards tell each other, by the numbers it was told under."""

    def __init__(self, snapshot: Snapshot, shards: list[Shard]) -> None:
        self._shards = {shard.shard: shard for shard in shards}
        self._order = {
            (row["shard"], row["gen"], row["seq"]): number
            for several in (
                [row for row in snapshot.ledger if row["kind"] == "merge_sent" and row["shard"] == shard.shard]
                for shard in shards
            )
            for number, row in enumerate(several)
        }

    def told(self, merge: dict[str, Any]) -> Message | None:
        number = self._order.get((merge["teller"], merge["told_gen"], merge["told_seq"]))
        sent = self._shards[merge["teller"]].sent
        return sent[number] if number is not None and number < len(sent) else None


def folded(shards: list[Shard], snapshot: Snapshot) -> None:
    """Fold them all, each waiting for the others' words."""
    exchange = Exchange(snapshot, shards)
    while sum(shard.advance(exchange) for shard in shards):
        pass
    for shard in shards:
        shard.finish()


class Shard:
    """One shard as it should be."""

    def __init__(self, snapshot: Snapshot, shard: int, decided: Decided, problems: list[str]) -> None:
        self.shard = shard
        self.people: dict[str, Person] = {}
        self.dead: list[tuple[str, int, str]] = []
        self.gone: list[Gone] = []
        self.suppressed: set[str] = set()
        self.duplicates = 0
        self.version = 0
        self.sent: list[Message] = []  # what this shard told others, in order
        self._shards, self._salt = snapshot.shards, snapshot.salt
        self._decided, self._done = decided, 0
        self._problems = problems
        self._books = {version: Book(version, body) for version, body in snapshot.rules.items()}
        self._history: list[tuple[int, Book]] = []
        self._now = 0
        self._newest = 0
        self._ticks = [t for t in snapshot.ticks if t["shard"] == shard]
        self._merges = [m for m in snapshot.merges if m["shard"] == shard]
        # what a poisonous record would have done is not known: it counts as not having happened
        self._poison = {
            row["src"]: row["payload"]["reason"]
            for row in snapshot.ledger
            if row["shard"] == shard and row["kind"] == "dead_letter" and row["payload"]["reason"][:4] == "bug:"
        }
        self._reached = snapshot.positions.get(shard, -1)

    def advance(self, exchange: Exchange) -> bool:
        """Fold on until something another shard tells has not been told yet; whether anything was folded."""
        before = self._done, len(self._ticks), len(self._merges)
        while self._done < len(self._decided.first):
            decision = self._decided.first[self._done]
            if decision.src > self._reached or not self._pass_before(decision.src, exchange):
                break
            self._done += 1
            self._decision(decision)
        else:
            self._pass_before(self._reached + 1, exchange)
        if self._done < len(self._decided.first) and self._decided.first[self._done].src > self._reached:
            self._pass_before(self._reached + 1, exchange)
        return before != (self._done, len(self._ticks), len(self._merges))

    def finish(self) -> None:
        for tick in self._ticks:
            self._problems.append(
                f"shard {self.shard}: tick {tick['tick_id']} lies behind {tick['at_src']}, not reached"
            )
        for merge in self._merges[:1]:
            self._problems.append(f"shard {self.shard}: {merge} was applied, and nobody told it")
        if not self._decided.versions or max(self._decided.versions) < self.version:
            self._problems.append(f"shard {self.shard}: rules {self.version} were in no decision")

    def _decision(self, decision: Accepted | Rejected | Moved | Erase | Readmit) -> None:
        self._newest = max(self._newest, decision.rules)
        if self._newest > self.version:
            self._problems.append(
                f"shard {self.shard} @{decision.src}: rules {self._newest} were seen, {self.version} were in force"
            )
        if isinstance(decision, Rejected | Accepted) and decision.src in self._poison:
            reason = self._poison[decision.src]
            self.dead.append((reason, decision.src, "" if reason == UNNAMED else decision.user_id))
        elif isinstance(decision, Erase):
            self._erase(decision.user_id, decision.received_at, decision.erasure_id, decision.erasure_id)
        elif isinstance(decision, Readmit):
            self.suppressed.discard(decision.user_id)
        elif isinstance(decision, Rejected | Accepted) and decision.user_id in self.suppressed:
            pass
        elif isinstance(decision, Rejected):
            self.dead.append((decision.reason, decision.src, decision.user_id))
        elif isinstance(decision, Accepted):
            self._event(decision)

    def _pass_before(self, src: int, exchange: Exchange) -> bool:
        """Let ticks and others' words come that were noted before event `src`, in the order they were noted; False where
        something was not told yet."""
        while True:
            tick = self._ticks[0] if self._ticks and self._ticks[0]["at_src"] < src else None
            merge = self._merges[0] if self._merges and self._merges[0]["at_src"] < src else None
            if merge is not None and (tick is None or not _before(tick, merge)):
                message = exchange.told(merge)
                if message is None:
                    return False
                self._merges.pop(0)
                self._hears(message, merge["as_of"])
            elif tick is not None:
                self._ticks.pop(0)
                self._tick(tick)
            else:
                return True

    def _tick(self, tick: dict[str, Any]) -> None:
        if tick["as_of"] < self._now or tick["rules_version"] < self.version:
            self._problems.append(f"shard {self.shard}: tick {tick['tick_id']} goes back in time")
        self._now = max(self._now, tick["as_of"])
        if tick["rules_version"] > self.version:
            self.version = tick["rules_version"]
            self._history.append((tick["as_of"], self._books[self.version]))
        for person in self.people.values():
            person.comes_to(self._now, self._books[self.version], self._history)

    def _erase(self, user_id: str, at: int, request: str, erasure_id: str, besides: str = "") -> None:
        """Erase the user, and tell the shards of their other ids, except of the one where it began."""
        person = self.people.pop(user_id, None)
        if person is not None and not person.born and not person.merged_into:
            person = None
        book = self._books.get(self.version)
        if person is not None:
            mine = [other for other, outcome in person.claims.items() if outcome != 2]
            for other in [person.merged_into] if person.merged_into else mine:
                if other != besides:
                    self._tell(person, Message("forgotten", other, user_id, at, at, request, request))
        if person is not None and book is not None:
            person.comes_to(max(at, self._now), book, self._history)
        letters = [reason for reason, _, user in self.dead if user == user_id]
        self.dead = [letter for letter in self.dead if letter[2] != user_id]
        self.gone.append(Gone(person, at, erasure_id, letters))
        self.suppressed.add(user_id)

    def _event(self, decision: Accepted) -> None:
        context = decision.context
        device = context.device if context else None
        self._does(
            decision.user_id,
            {
                "src": decision.src,
                "name": decision.name,
                "message_id": decision.message_id,
                "occurred_at": decision.occurred_at,
                "received_at": decision.received_at,
                "mode": decision.mode,
                "city_id": decision.city_id,
                "properties": decision.properties,
                "identifies": decision.identifies,
                "context": context
                and {
                    "device": device and (device.id, device.type, device.token),
                    "locale": context.locale,
                    "timezone": context.timezone,
                    "app_version": context.app_version,
                    "campaign": context.campaign,
                },
            },
            max(decision.received_at, self._now),
        )

    def _does(self, user_id: str, event: dict[str, Any], moment: int) -> None:
        book = self._books.get(self.version)
        if book is None or user_id in self.suppressed:
            return
        person = self.people.setdefault(user_id, Person(user_id))
        at, received, cause = event["occurred_at"], event["received_at"], event["message_id"]
        if person.merged_into:
            if person.seen_before(cause, received):
                self.duplicates += 1
                return
            person.from_nowhere()
            self._tell(person, Message("forwarded", person.merged_into, "", at, received, cause, event | {"src": -1}))
            return
        if not person.does(event, moment, book, self._history):
            self.duplicates += 1
            return
        other = event["identifies"]
        if other is None:
            return
        person.known = True
        if other in ("", user_id) or other in person.claims or veiled(other) in person.claims:
            return
        person.from_nowhere()
        person.claims[other] = 0
        self._tell(person, Message("asked", other, user_id, at, received, cause))

    def _tell(self, person: Person, message: Message) -> None:
        self.sent.append(message)
        told = in_words(message, shard_of(message.user, self._shards))
        person.tell("merge_sent", told, message.at, "merge", message.cause)

    def _hears(self, message: Message, moment: int) -> None:
        book = self._books[self.version]
        if moment < max(message.received_at, self._now):
            self._problems.append(f"shard {self.shard}: {message} was applied at {moment}, before its time")
        if message.what == "forwarded":
            self._does(message.user, message.more, moment)
            return
        person = self.people.setdefault(message.user, Person(message.user))
        _, user, other, at, received, cause, more = message
        if message.what == "asked":
            if person.merged_into == other:
                return
            person.comes_to(moment, book, self._history)
            if person.merged_into or person.known or user in self.suppressed:
                reason = "elsewhere" if person.merged_into else "known" if person.known else "suppressed"
                person.from_nowhere()
                self._tell(person, Message("declined", other, user, at, received, cause, reason))
                return
            was = copy.deepcopy(person) if person.born else None
            if was is None:
                person.merged_into = other
            else:
                leave(person, other, at, cause, book)
                was.settled = person.settled
            person.from_nowhere()
            self._tell(person, Message("answered", other, user, at, received, cause, was))
            return
        if not person.born and not person.merged_into:
            return
        if message.what == "forgotten":
            if other in (person.merged_into, *(o for o, outcome in person.claims.items() if outcome == 1)):
                of_this = f"{more}-{suppression_hash(self._salt, user).hex()[:12]}"
                self._erase(user, received, more, of_this, besides=other)
            return
        person.claims.pop(other, None)
        person.comes_to(moment, book, self._history)
        if message.what == "answered":
            person.claims[other] = 1
        elif more != "suppressed":
            person.claims[veiled(other)] = 2
        if message.what == "declined" and more != "suppressed":
            person.from_nowhere()
            person.tell("merge_refused", {"reason": more}, at, "merge", cause)
        elif message.what == "answered" and more is not None:
            absorb(person, more, at, moment, cause, book)

    # -- comparing

    def compare(self, snapshot: Snapshot) -> list[str]:
        found: list[str] = []
        ledger = [row for row in snapshot.ledger if row["shard"] == self.shard]
        kept = {row["user_id"]: row for row in snapshot.users if row["shard"] == self.shard}
        watermark = next((t["watermark"] for t in snapshot.times if t["shard"] == self.shard), 0)
        here = {user_id for user_id, person in self.people.items() if person.born or person.merged_into}
        for user_id in sorted(here | kept.keys()):
            person = self.people.get(user_id)
            if person is None or user_id not in here or user_id not in kept:
                found.append(f"user {user_id}: {'not expected' if person is None else 'missing'} in shard {self.shard}")
                continue
            expected, actual = self._state(person), _kept_state(kept[user_id])
            found += [
                f"user {user_id}: {name} is {actual[name]!r}, should be {value!r}"
                for name, value in expected.items()
                if actual[name] != value
            ]
            bucket, due = kept[user_id]["due_bucket"], expected["due_at"]
            if due >= 0 and (bucket is None or bucket > due // 3_600_000):
                found.append(f"user {user_id}: due bucket {bucket} would miss the due moment {due}")
            if 0 <= due <= watermark:
                found.append(f"user {user_id}: due at {due}, {NOT_BROUGHT} to the watermark {watermark}")
            found += person.doubts
        overwritten = [row for row in ledger if row["src"] == OVERWRITTEN]
        ledger = [row for row in ledger if row["src"] != OVERWRITTEN]
        found += self._rows(ledger)
        found += self._dead(ledger)
        found += self._overwritten(overwritten)
        found += self._counts(snapshot)
        known = [(one.person, one.at) for one in self.gone if one.person is not None]
        everyone = [self.people[user_id] for user_id in here]
        found += oracle_days.compare(snapshot, self.shard, everyone, known, self._history)
        found += self._members(snapshot, ledger)
        return found

    def _state(self, person: Person) -> dict[str, Any]:
        if person.merged_into:
            return _LAID_DOWN | {"merged_into": person.merged_into}
        book = self._books[self.version]
        return {
            "stage": person.stage,
            "stage_at": person.stage_at,
            "activity": person.pulse,
            "activity_at": person.pulse_at,
            "first_seen_at": person.first_seen,
            "last_seen_at": person.last_seen,
            "first_activity_at": person.first_act,
            "last_activity_at": person.last_act,
            "session_start_at": person.visit[0] if person.visit else -1,
            "session_last_at": person.visit[1] if person.visit else -1,
            "session_screens": person.visit[2] if person.visit else 0,
            **person.counts,
            **person.bought.kept(),
            "default_city": person.home,
            "searched": sorted([c, *v] for c, v in person.searched.items()),
            "added": sorted([c, *v] for c, v in person.added.items()),
            "segments": sorted(person.segments),
            "consents": person.consents,
            "roles": {role for _, role in ROLES if role in person.roles},
            "due_at": person.next_moment(book),
            "rules_version": person.version,
            "channels": person.channels,
            "merged_into": "",
            "known": person.known,
            "claims": [[other, outcome] for other, outcome in person.claims.items()],
            "assignment_id": "" if person.assignment == person.user_id else person.assignment,
            "devices": [list(d) for d in person.devices.values()],
            **person.profile,
        }

    def _rows(self, ledger: list[dict[str, Any]]) -> list[str]:
        """The rows of one user stand in the order things happened to them; users may interleave."""
        found = []
        by_user: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in ledger:
            if row["kind"] != "dead_letter":
                by_user[row["user_id"]].append(row)
        for user_id in sorted(self.people.keys() | by_user.keys()):
            expected = self.people[user_id].rows if user_id in self.people else []
            actual = by_user.get(user_id, [])
            for number in range(max(len(expected), len(actual))):
                should: Any = expected[number] if number < len(expected) else None
                is_now: Any = actual[number] if number < len(actual) else None
                if not _same(should, is_now):
                    found.append(f"user {user_id}: ledger row {number} is {_told(is_now)}, should be {should}")
                    break
        return found

    def _dead(self, ledger: list[dict[str, Any]]) -> list[str]:
        actual = [(r["payload"]["reason"], r["src"], r["user_id"]) for r in ledger if r["kind"] == "dead_letter"]
        missing, added = Counter(self.dead) - Counter(actual), Counter(actual) - Counter(self.dead)
        found = [f"shard {self.shard}: dead letter {letter} is missing" for letter in missing.elements()]
        return found + [f"shard {self.shard}: dead letter {letter} should not be" for letter in added.elements()]

    def _overwritten(self, rows: list[dict[str, Any]]) -> list[str]:
        """What erased users leave: their story under an id that means nothing, ended by having left everything."""
        found = []
        by_alias: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        aliases: dict[str, str] = {}
        for row in rows:
            by_alias[row["user_id"]].append(row)
            if row["kind"] == "user_erased":
                aliases[row["cause_id"]] = row["user_id"]
        for one in self.gone:
            left = by_alias.pop(aliases.get(one.erasure_id, ""), [])
            if one.person is not None and (doubts := one.person.doubts):
                found += doubts
            letters = Counter(row["payload"]["reason"] for row in left if row["kind"] == "dead_letter")
            if letters != Counter(one.letters):
                found.append(f"erasure {one.erasure_id}: dead letters {letters}, should be {Counter(one.letters)}")
            told = [row for row in left if row["kind"] != "dead_letter" and row["kind"] not in FEED_ONLY]
            should = [row for row in one.person.rows if row.kind not in FEED_ONLY] if one.person is not None else []
            story = [(row["kind"], row["payload"], row["occurred_at"]) for row in told]
            nameless_story = [(r.kind, {} if r.kind == "user_merged" else r.payload, r.occurred_at) for r in should]
            if story[: len(should)] != nameless_story:
                found.append(f"erasure {one.erasure_id}: what is left is {story}, should be {should}")
            alive = one.person if one.person is not None and not one.person.merged_into else None
            exits: list[tuple[str, dict[str, Any]]] = [
                ("segment_exited", {"segment": s}) for s in (alive.segments if alive else ())
            ]
            exits += [
                ("cohort_exited", {"relation": relation, "city_id": city})
                for relation, city in (alive.ties() if alive else ())
            ]
            ended = [(kind, payload) for kind, payload, at in story[len(should) :] if at == one.at]
            if sorted(map(str, ended[:-1])) != sorted(map(str, exits)) or ended[-1:] != [("user_erased", {})]:
                found.append(f"erasure {one.erasure_id}: ends with {ended}, should leave {exits}")
        nameless = [row for row in by_alias.pop("", []) if row["payload"]]
        found += [f"shard {self.shard}: row {row['seq']} still says something" for row in nameless]
        return found + [f"shard {self.shard}: nobody was erased who left {alias}" for alias in by_alias]

    def _whole(self) -> list[Person]:
        return [person for person in self.people.values() if person.born and not person.merged_into]

    def _counts(self, snapshot: Snapshot) -> list[str]:
        expected: Counter[tuple[str, str]] = Counter()
        for person in self._whole():
            expected["users", "all"] += 1
            expected["stage", person.stage] += 1
            expected["activity", person.pulse] += 1
            expected.update(("rate", role) for role in person.roles)
            orders = person.bought.measures()
            expected["total", "orders"] += orders["orders"]
            expected["total", "revenue"] += orders["revenue"]
            expected.update(("segment", segment) for segment in person.segments)
            expected.update(("cohort", f"{relation}:{city}") for relation, city in person.ties())
        for one in self.gone:
            if one.person is not None and not one.person.merged_into:
                orders = one.person.bought.measures()
                expected["total", "orders"] += orders["orders"]
                expected["total", "revenue"] += orders["revenue"]
        actual = {(t["kind"], t["name"]): t["users"] for t in snapshot.tallies if t["shard"] == self.shard}
        return [
            f"shard {self.shard}: tally {key} is {actual.get(key, 0)}, should be {expected[key]}"
            for key in sorted(expected.keys() | actual.keys())
            if actual.get(key, 0) != expected[key]
        ]

    def _members(self, snapshot: Snapshot, ledger: list[dict[str, Any]]) -> list[str]:
        entered = {
            (r["user_id"], r["payload"]["relation"], r["payload"]["city_id"]): r["seq"]
            for r in ledger
            if r["kind"] == "cohort_entered"
        }
        expected = {(p.user_id, *tie): entered.get((p.user_id, *tie)) for p in self._whole() for tie in p.ties()}
        actual = {
            (m["user_id"], m["relation"], m["city_id"]): m["entered_seq"]
            for m in snapshot.members
            if m["shard"] == self.shard
        }
        return [
            f"shard {self.shard}: cohort member {key} entered by {actual.get(key)}, should be {expected.get(key)}"
            for key in sorted(expected.keys() | actual.keys())
            if key not in expected or key not in actual or expected[key] != actual[key]
        ]


def _before(tick: dict[str, Any], merge: dict[str, Any]) -> bool:
    """Whether the tick was noted first: of what lies behind one event, by where time and rules had come."""
    if tick["at_src"] != merge["at_src"]:
        return bool(tick["at_src"] < merge["at_src"])
    return bool(tick["as_of"] <= merge["last_tick"] and tick["rules_version"] <= merge["rules_version"])


def _kept_state(row: dict[str, Any]) -> dict[str, Any]:
    kept = hot(row)
    kept["searched"], kept["added"] = sorted(kept["searched"]), sorted(kept["added"])
    kept["roles"] = {role for bit, role in ROLES if kept["flags"] & bit}
    kept["channels"] = [kept["first_channel"], kept["last_channel"]]
    kept |= dict(zip(SHOP, kept.get("shop") or [], strict=False)) or NO_SHOP
    return kept | cold(row)


def _same(should: Row | None, row: dict[str, Any] | None) -> bool:
    if should is None or row is None:
        return False
    if row["kind"] == "merge_sent":
        row = row | {"payload": told_of(row["payload"])}
    # a moment that passed is the same whoever noticed it: the sweep, or the user's next event
    src_fits = should.cause_type != "event" or row["src"] == should.src
    return src_fits and (
        (should.kind, should.payload, should.occurred_at, should.cause_type, should.cause_id)
        == (row["kind"], row["payload"], row["occurred_at"], row["cause_type"], row["cause_id"])
    )


def _told(row: dict[str, Any] | None) -> str:
    if row is None:
        return "missing"
    shown = ("seq", "kind", "payload", "occurred_at", "cause_type", "cause_id", "src")
    return str({name: row[name] for name in shown})
