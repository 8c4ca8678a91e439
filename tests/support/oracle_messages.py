"""Whether each thing worth a push became one message, judged rightly, and reached the phone as often as it may."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from shared.contracts.events import FeedTime, decode_feed
from tests.support import oracle_limits, oracle_moments
from tests.support.oracle_person import Book, rfc3339
from tests.support.oracle_reader import Known, Newest, Reader
from tests.support.oracle_snapshot import Snapshot
from tests.support.oracle_topics import Seen

READ_WITHIN = 3_600_000
"""How long the notifier may take to notice that something is due, on a clock that runs two hundred times as fast."""
TERMINAL = {"sent", "failed", "unknown", "suppressed", "held_out"}


class Wanted(NamedTuple):
    """What a ledger row asks for. `known`: the user as the row left them, and for what has to wait as any later row
    did. `off`: whether it must have been called off; None where it came down to which of two was read first."""

    row: dict[str, Any]
    campaign: dict[str, Any]
    due: int | None
    known: list[Known]
    off: bool | None = False


def check(snapshot: Snapshot, repeated_sends: int = 0, unknown: int = 0) -> list[str]:
    """`repeated_sends`: how many pushes may have arrived twice; `unknown`: how many may have no known outcome."""
    book, newest = Book(max(snapshot.rules), snapshot.rules[max(snapshot.rules)]), Newest(snapshot)
    kept = {m["message_id"]: m for m in snapshot.messages if not m["run_id"]}
    expected = _expected(snapshot, book)
    found = [f"message {i} is missing: {expected[i]}" for i in sorted(expected.keys() - kept.keys())]
    unasked = sorted(kept.keys() - expected.keys())
    found += [f"message {i} should not be: nothing in the ledger asks for it" for i in unasked]
    for message_id in sorted(expected.keys() & kept.keys()):
        found += _judged(kept[message_id], book, snapshot.salt, expected[message_id], newest)
    found += _outcomes(snapshot)
    if snapshot.pushes is not None:
        found += _arrived(snapshot, repeated_sends)
    lost = sum(m["state"] == "unknown" for m in snapshot.messages)
    if lost > unknown:
        found.append(f"{lost} messages have no known outcome, {unknown} may")
    return found


def _expected(snapshot: Snapshot, book: Book) -> dict[str, Wanted]:
    """By message id."""
    readers: dict[str, Reader] = {}
    wanted: dict[str, Wanted] = {}
    waiting: defaultdict[str, list[str]] = defaultdict(list)
    times = {shard: _times(log) for shard, log in snapshot.feed.items()}
    for row in sorted(snapshot.ledger, key=lambda r: (r["shard"], r["seq"])):
        user = row["user_id"]
        reader = readers.setdefault(user, Reader())
        reader.takes(row)
        for message_id in waiting[user]:
            one = wanted[message_id]
            wanted[message_id] = _later(one, row, reader, times.get(row["shard"], []))
        for campaign in book.campaigns:
            asked = oracle_moments.asks(campaign, row)
            if asked is None:
                continue
            message_id = message_id_of(campaign, user, asked.occurrence, row["occurred_at"])
            if message_id in wanted:
                continue
            known = reader.as_known(campaign, row["payload"].get("city_id"))
            wanted[message_id] = Wanted(row, campaign, asked.due, [known])
            if asked.due is not None:
                waiting[user].append(message_id)
    return wanted


def _later(one: Wanted, row: dict[str, Any], reader: Reader, times: list[tuple[int, int]]) -> Wanted:
    """What a later row of the user makes of something that has to wait."""
    assert one.due is not None
    off = one.off
    if not off and oracle_moments.ends(one.campaign, one.row, one.due, row):
        # the first time told that makes it due: rows before that were read in time, later ones perhaps
        told = min((seq for seq, at in times if at >= one.due and seq >= one.row["seq"]), default=None)
        off = True if told is None or row["seq"] <= told else None
    known = reader.as_known(one.campaign, one.row["payload"].get("city_id"))
    return one._replace(off=off, known=[*one.known, known])


def _times(log: list[Seen]) -> list[tuple[int, int]]:
    """The times a shard's feed told, each with the number of the last row before it."""
    return [(one.seq, one.as_of) for r in log if isinstance(one := decode_feed(r.value or b""), FeedTime)]


def message_id_of(campaign: dict[str, Any], user_id: str, occurrence: str, at: int) -> str:
    text = "\x1f".join((campaign["id"], str(campaign.get("version", 1)), user_id, occurrence))
    moment = rfc3339(at)
    return f"{moment[2:4]}{moment[5:7]}-{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}"


def _judged(message: dict[str, Any], book: Book, salt: str, wanted: Wanted, newest: Newest) -> list[str]:
    row, name = wanted.row, message["message_id"]
    found = [] if wanted.due is None else _waited(message, wanted)
    if not found and message["state"] != "waiting" and message["reason"] != "called_off":
        since = wanted.due or row["occurred_at"]
        # a message that waited for its delay alone was not held, and so was judged once
        judged = message | {"release_at": 0} if message.get("release_at") == wanted.due else message
        several = [verdict(judged, book, salt, wanted.campaign, known, newest, since) for known in wanted.known]
        found = min(several, key=len)
    if (message["cause_seq"], message["cause_src"]) != (row["seq"], row["src"]):
        found = [*found, f"message {name} names {message['cause_seq']} as its cause, not {row['seq']}"]
    return found


def _waited(message: dict[str, Any], wanted: Wanted) -> list[str]:
    """Whether it waited as long as it should, and was called off if it had to be."""
    assert wanted.due is not None
    off = message["reason"] == "called_off"
    if wanted.off is not None and off is not wanted.off:
        was = "was called off, and nothing asks for that" if off else f"is {message['state']}, should be called off"
        return [f"message {message['message_id']} {was}"]
    if not off and message["state"] != "waiting" and message["planned_at"] < wanted.due:
        return [f"message {message['message_id']} was due at {wanted.due} and judged at {message['planned_at']}"]
    return []


def verdict(
    message: dict[str, Any],
    book: Book,
    salt: str,
    campaign: dict[str, Any],
    known: Known,
    newest: Newest,
    occurred_at: int,
    valid_until: int | None = None,
) -> list[str]:
    """Whether the message became what every gate, asked again, makes of it."""
    devices, consent, meant, has_city, seq, assignment = known
    percent = 0.0 if campaign.get("safety") else campaign.get("holdout_percent", 0.0)
    drawn_by = assignment or message["user_id"]
    draw = hashlib.blake2b(f"{salt}:{campaign['id']}:{drawn_by}".encode(), digest_size=8).digest()
    should: tuple[str, str]
    if not campaign.get("enabled", True):
        should = ("suppressed", "paused")
    elif not meant:
        should = ("suppressed", "not_in_audience")
    elif consent is False or (consent is None and "push" in book.consent_asked):
        should = ("suppressed", "no_consent")
    elif not devices:
        should = ("suppressed", "no_device")
    elif message["planned_at"] - occurred_at > campaign.get("freshness_seconds", 3600) * 1000:
        should = ("suppressed", "stale")
    elif valid_until is not None and message["planned_at"] >= valid_until:
        should = ("suppressed", "expired")
    elif has_city:
        should = ("suppressed", "aborted")
    elif int.from_bytes(draw, "big") % 10_000 < round(percent * 100):
        should = ("held_out", "")
    else:
        should = ("sent", "")
    state, reason = message["state"], message["reason"]
    fits = state == should[0] and (state != "suppressed" or reason == should[1])
    if should[0] == "sent" and not fits:
        # before the wire it is asked again, where it had to wait for that: it was planned, and has a collapse id
        again = bool(message.get("release_at") or message.get("collapse_id"))
        waited = state == "suppressed" and reason in ("no_consent", "no_device", "expired")
        held = state == "suppressed" and again and reason in ("paused", "stale", "left_audience", "not_in_audience")
        limited = state == "suppressed" and reason in oracle_limits.REASONS  # whether rightly: oracle_limits says
        fits = state in ("failed", "unknown", "held") or waited or held or limited
    found = []
    if not fits:
        found.append(f"message {message['message_id']} is {state} {reason}, should be {should}")
    if should[0] == state == "sent" and message["token"] not in (devices[-1], *newest.until_sent(message, seq)):
        found.append(f"message {message['message_id']} went to {message['token']}, not to {devices[-1]}")
    return found


def _outcomes(snapshot: Snapshot) -> list[str]:
    """Each message that has come to an end has exactly one row that says so."""
    told = Counter(r["message_id"] for r in snapshot.outcome_rows if r["outcome"] != "opened")
    states = {m["message_id"]: m["state"] for m in snapshot.messages}
    said = {r["message_id"]: r["outcome"] for r in snapshot.outcome_rows if r["outcome"] != "opened"}
    found = [f"message {i} has {n} outcomes" for i, n in told.items() if n > 1]
    watermarks = {t["shard"]: t["watermark"] for t in snapshot.times}
    waiting = {
        m["message_id"]
        for m in snapshot.messages
        if (within := {"waiting": READ_WITHIN, "held": snapshot.near}.get(m["state"])) is not None
        and m["release_at"] > watermarks.get(m["shard"], 0) - within
    }
    for message_id, state in states.items():
        if message_id in waiting:
            continue
        if state not in TERMINAL:
            found.append(f"message {message_id} is still {state}")
        elif said.get(message_id) != state:
            found.append(f"message {message_id} is {state}, its outcome says {said.get(message_id)}")
    return found


def _arrived(snapshot: Snapshot, repeated_sends: int) -> list[str]:
    """What was sent arrived, once; what was not, never. Nothing arrived more often than it was attempted."""
    assert snapshot.pushes is not None
    arrived = Counter(p["data"].get("message_id") for p in snapshot.pushes)
    shown = {(p["data"].get("message_id"), p["collapse_id"]) for p in snapshot.pushes}
    phones = {(p["data"].get("message_id"), p["token"]) for p in snapshot.pushes}
    found = []
    for message in snapshot.messages:
        if arrived[message["message_id"]] > message["attempts"]:
            found.append(
                f"message {message['message_id']} was attempted {message['attempts']} times and arrived more often"
            )
        shown.discard((message["message_id"], message["collapse_id"]))
        times = arrived.pop(message["message_id"], 0)
        if message["state"] == "sent" and times == 0:
            found.append(f"message {message['message_id']} is sent and never arrived")
        elif message["state"] == "sent" and (message["message_id"], message["token"]) not in phones:
            found.append(f"message {message['message_id']} went to {message['token']}, and arrived elsewhere")
        elif message["state"] in ("suppressed", "held_out", "failed") and times:
            found.append(f"message {message['message_id']} is {message['state']}, and arrived")
        elif times > 1:
            repeated_sends -= times - 1
    if repeated_sends < 0:
        found.append(f"pushes arrived more often than they may, by {-repeated_sends}")
    found += [
        f"a push of message {message_id} arrived under another collapse id, {under}" for message_id, under in shown
    ]
    return found + [f"a push without a message arrived: {message_id}" for message_id in arrived]
