"""Whether every raw record was decided exactly once, in order, and by what it says; and what was decided first."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from shared.contracts.events import Accepted, Decision, Erase, Moved, Readmit, Rejected, TimeRecord, decode_decision
from shared.contracts.identifiers import shard_of
from tests.support.oracle_snapshot import Log, Snapshot
from tests.support.oracle_topics import Seen

NAMES = {"screen": "$screen", "page": "$page", "identify": "$identify", "group": "$group", "alias": "$alias"}


First = Accepted | Rejected | Moved | Erase | Readmit


class Decided:
    """One shard's first decisions, in the order of raw, and how often a later writer decided again."""

    def __init__(self) -> None:
        self.first: list[First] = []
        self.repeats = 0
        self.otherwise = 0
        self.versions: set[int] = set()


def read(events: list[Seen], shard: int, problems: list[str]) -> Decided:
    """The first decision per raw record, checked as a chain."""
    found, last, as_of = Decided(), -1, 0
    kept: dict[int, Decision] = {}
    for record in events:
        decision = decode_decision(record.value or b"")
        where = f"app.events.v1[{shard}]@{record.offset}"
        if isinstance(decision, TimeRecord):
            if decision.src > last:
                problems.append(f"{where}: a time record speaks of {decision.src}, and {last} is the last decided")
            found.versions.add(decision.rules)
            as_of = max(as_of, decision.as_of)
            continue
        if decision.src <= last:
            found.repeats += 1
            found.otherwise += _content(decision) != _content(kept.get(decision.src))
            continue
        if decision.prev > last:
            problems.append(f"{where}: decisions are missing between {last} and {decision.prev}")
        found.versions.add(decision.rules)
        found.first.append(decision)
        kept[decision.src] = decision
        last = decision.src
    return found


def _content(decision: Decision | None) -> Any:
    if isinstance(decision, Accepted):
        return "a", decision.name, decision.occurred_at, decision.city_id, decision.properties, decision.identifies
    return (type(decision).__name__, getattr(decision, "reason", ""))


def check(snapshot: Snapshot, shard: int, decided: Decided, problems: list[str]) -> None:
    """Each raw record has one first decision, and the decision fits its bytes."""
    raw = {r.offset: r for r in snapshot.raw.get(shard, [])}
    decided_at = [d.src for d in decided.first]
    problems += [f"raw[{shard}]@{offset} was never decided" for offset in sorted(raw.keys() - set(decided_at))]
    problems += [f"raw[{shard}]@{o} was decided and does not exist" for o in sorted(set(decided_at) - raw.keys())]
    for decision in decided.first:
        record = raw.get(decision.src)
        if record is not None:
            misfits = _misfits(decision, record, shard, snapshot)
            problems += [f"raw[{shard}]@{decision.src}: {misfit}" for misfit in misfits]


def _misfits(decision: First, record: Seen, shard: int, snapshot: Snapshot) -> list[str]:
    digest = hashlib.blake2b((record.key or b"") + b"\x00" + (record.value or b""), digest_size=8).digest()
    found = [] if digest == decision.digest else ["the digest is another record's"]
    try:
        told = json.loads(record.value or b"")
        told = told if isinstance(told, dict) else None
    except ValueError:
        told = None
    user = (told.get("userId") or told.get("anonymousId")) if told else None
    key = (record.key or b"").decode("utf-8", "replace")
    if isinstance(decision, Moved):
        if user is None or (shard_of(user, snapshot.shards) == shard and key == user):
            found.append("it was moved, and lay where it belongs")
        elif not _copied(decision, record, snapshot.raw):
            found.append(f"it was moved to {decision.to} and is not there")
        return found
    if told is None or user is None:
        return found if isinstance(decision, Rejected) else [*found, "it was accepted and cannot be read"]
    if isinstance(decision, Erase | Readmit):
        return [*found, *_not_asked(decision, user, record)]
    if isinstance(decision, Rejected):
        return found if decision.reason else [*found, "it was rejected without a reason"]
    # the gateway's header comes first: it names events that name none themselves
    named = record.headers.get("message_id", b"").decode() or told.get("messageId") or f"o-{shard}-{decision.src}"
    call = told.get("type") or record.headers.get("type", b"").decode()
    expected = {
        "user_id": user,
        "message_id": named,
        "name": told.get("event") if call == "track" else NAMES.get(call),
        "identifies": _identifies(told, call),
        "received_at": int(record.headers.get("received_at", str(record.timestamp))),
    }
    for name, value in expected.items():
        if getattr(decision, name) != value:
            found.append(f"{name} is {getattr(decision, name)!r} in the decision and {value!r} in raw")
    if decision.occurred_at > decision.received_at:
        found.append("it occurred after it was received")
    allowed = snapshot.rules[decision.rules].get("intake", {}).get("properties", {}).get(decision.name, [])
    if not decision.properties.keys() <= set(allowed):
        found.append(f"it carries properties the pack does not list: {decision.properties.keys() - set(allowed)}")
    for name, value in decision.properties.items():
        given = (told.get("properties") or {}).get(name)
        if given != value and not isinstance(given, dict) and value != str(given)[:1024]:
            found.append(f"property {name} is {value!r} and was {given!r}")
    return found


def _not_asked(decision: Erase | Readmit, user: Any, record: Seen) -> list[str]:
    asked = (user, record.headers.get("message_id", b"").decode(), record.headers.get("mode", b"").decode())
    taken = (decision.user_id, decision.erasure_id, type(decision).__name__.lower())
    return [] if asked == taken else [f"it was taken for the request {taken}, and is {asked}"]


def _identifies(told: dict[str, Any], call: str | None) -> str | None:
    """The other id that an event which says who a user is names for them."""
    if call not in ("identify", "alias") or not told.get("userId"):
        return None
    return (call == "alias" and told.get("previousId")) or told.get("anonymousId") or ""


def _copied(decision: Moved, record: Seen, raw: Log) -> bool:
    return any(copy.value == record.value for copy in raw.get(decision.to, []))
