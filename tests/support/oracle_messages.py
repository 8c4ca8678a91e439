"""Whether each thing worth a push became one message, judged rightly, and reached the phone as often as it may."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

from tests.support import oracle_limits
from tests.support.oracle_person import Book, rfc3339
from tests.support.oracle_snapshot import Snapshot

TERMINAL = {"sent", "failed", "unknown", "suppressed", "held_out"}


class Reader:
    """What the notifier may know of a user at one point of the feed."""

    def __init__(self) -> None:
        self.devices: dict[str, str] = {}
        self.consent: bool | None = None
        self.home: int | None = None
        self.added: set[int] = set()

    def takes(self, row: dict[str, Any]) -> None:
        payload = row["payload"]
        if row["kind"] == "device_set":
            device = payload["device"]
            self.devices = {i: t for i, t in self.devices.items() if i != device["id"] and t != device["token"]}
            self.devices[device["id"]] = device["token"]
        elif row["kind"] == "device_removed":
            self.devices.pop(payload["device_id"], None)
        elif row["kind"] == "consent_set" and "push" in payload:
            self.consent = payload["push"]
        elif row["kind"] == "cohort_entered" and payload["relation"] == "default":
            self.home = payload["city_id"]
        elif row["kind"] == "cohort_exited" and payload["relation"] == "default" and payload["city_id"] == self.home:
            self.home = None
        elif row["kind"] == "cohort_entered" and payload["relation"] == "added":
            self.added.add(payload["city_id"])
        elif row["kind"] == "cohort_exited" and payload["relation"] == "added":
            self.added.discard(payload["city_id"])


def check(snapshot: Snapshot, repeated_sends: int = 0, unknown: int = 0) -> list[str]:
    """`repeated_sends`: how many pushes may have arrived twice; `unknown`: how many may have no known outcome."""
    newest = Book(max(snapshot.rules), snapshot.rules[max(snapshot.rules)])
    kept = {m["message_id"]: m for m in snapshot.messages if not m["run_id"]}
    expected = _expected(snapshot, newest)
    found = [f"message {i} is missing: {expected[i]}" for i in sorted(expected.keys() - kept.keys())]
    unasked = sorted(kept.keys() - expected.keys())
    found += [f"message {i} should not be: nothing in the ledger asks for it" for i in unasked]
    for message_id in sorted(expected.keys() & kept.keys()):
        found += _judged(kept[message_id], newest, snapshot.salt, **expected[message_id])
    found += _outcomes(snapshot)
    if snapshot.pushes is not None:
        found += _arrived(snapshot, repeated_sends)
    lost = sum(m["state"] == "unknown" for m in snapshot.messages)
    if lost > unknown:
        found.append(f"{lost} messages have no known outcome, {unknown} may")
    return found


def _expected(snapshot: Snapshot, book: Book) -> dict[str, dict[str, Any]]:
    """Message id → the ledger row that asks for it, the campaign, and the user as the feed left them there."""
    readers: dict[str, Reader] = {}
    wanted: dict[str, dict[str, Any]] = {}
    for row in sorted(snapshot.ledger, key=lambda r: (r["shard"], r["seq"])):
        reader = readers.setdefault(row["user_id"], Reader())
        reader.takes(row)
        for campaign in book.campaigns:
            trigger = campaign["trigger"]
            if trigger["type"] != row["kind"] or row["kind"] not in ("stage_changed", "activity_changed"):
                continue
            before, after = row["payload"]["from"], row["payload"]["to"]
            if (trigger.get("from") and before not in trigger["from"]) or (
                trigger["to"] and after not in trigger["to"]
            ):
                continue
            occurrence = f"{row['kind']}:{before or ''}>{after}:{row['occurred_at']}"
            message_id = message_id_of(campaign, row["user_id"], occurrence, row["occurred_at"])
            wanted.setdefault(
                message_id,
                {"row": row, "campaign": campaign, "devices": list(reader.devices.values()), "consent": reader.consent},
            )
    return wanted


def message_id_of(campaign: dict[str, Any], user_id: str, occurrence: str, at: int) -> str:
    text = "\x1f".join((campaign["id"], str(campaign.get("version", 1)), user_id, occurrence))
    moment = rfc3339(at)
    return f"{moment[2:4]}{moment[5:7]}-{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}"


def _judged(
    message: dict[str, Any],
    book: Book,
    salt: str,
    row: dict[str, Any],
    campaign: dict[str, Any],
    devices: list[str],
    consent: bool | None,
) -> list[str]:
    found = verdict(message, book, salt, campaign, devices, consent, row["occurred_at"])
    if (message["cause_seq"], message["cause_src"]) != (row["seq"], row["src"]):
        found.append(f"message {message['message_id']} names {message['cause_seq']} as its cause, not {row['seq']}")
    return found


def verdict(
    message: dict[str, Any],
    book: Book,
    salt: str,
    campaign: dict[str, Any],
    devices: list[str],
    consent: bool | None,
    occurred_at: int,
    valid_until: int | None = None,
) -> list[str]:
    """Whether the message became what every gate, asked again, makes of it; `devices` are tokens, the newest last."""
    percent = 0.0 if campaign.get("safety") else campaign.get("holdout_percent", 0.0)
    draw = hashlib.blake2b(f"{salt}:{campaign['id']}:{message['user_id']}".encode(), digest_size=8).digest()
    should: tuple[str, str]
    if not campaign.get("enabled", True):
        should = ("suppressed", "paused")
    elif consent is False or (consent is None and "push" in book.consent_asked):
        should = ("suppressed", "no_consent")
    elif not devices:
        should = ("suppressed", "no_device")
    elif message["planned_at"] - occurred_at > campaign.get("freshness_seconds", 3600) * 1000:
        should = ("suppressed", "stale")
    elif valid_until is not None and message["planned_at"] >= valid_until:
        should = ("suppressed", "expired")
    elif int.from_bytes(draw, "big") % 10_000 < round(percent * 100):
        should = ("held_out", "")
    else:
        should = ("sent", "")
    state, reason = message["state"], message["reason"]
    fits = state == should[0] and (state != "suppressed" or reason == should[1])
    if should[0] == "sent" and not fits:
        waited = state == "suppressed" and reason in ("no_consent", "no_device", "expired")
        held = (
            state == "suppressed" and bool(message.get("release_at")) and reason in ("paused", "stale", "left_audience")
        )
        limited = state == "suppressed" and reason in oracle_limits.REASONS  # whether rightly: oracle_limits says
        fits = state in ("failed", "unknown") or waited or held or limited
    found = []
    if not fits:
        found.append(f"message {message['message_id']} is {state} {reason}, should be {should}")
    if should[0] == "sent" and state == "sent" and message["attempts"] == 1 and message["token"] != devices[-1]:
        found.append(f"message {message['message_id']} went to {message['token']}, not to {devices[-1]}")
    return found


def _outcomes(snapshot: Snapshot) -> list[str]:
    """Each message that has come to an end has exactly one row that says so."""
    told = Counter(r["message_id"] for r in snapshot.outcome_rows if r["outcome"] != "opened")
    states = {m["message_id"]: m["state"] for m in snapshot.messages}
    said = {r["message_id"]: r["outcome"] for r in snapshot.outcome_rows if r["outcome"] != "opened"}
    found = [f"message {i} has {n} outcomes" for i, n in told.items() if n > 1]
    for message_id, state in states.items():
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
