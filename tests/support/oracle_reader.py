"""What the notifier may know of a user at one point of the feed, and which of their devices was set last, and when."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

from tests.support.oracle_snapshot import Snapshot

WAITED = 5_000
"""A message that was attempted so much later than it was planned is aimed again."""


class Known(NamedTuple):
    """A user as a gate sees them: tokens, the newest last; what they said of pushes; whether the campaign is for them,
    and whether its text gives up because the city is theirs already. `seq`: of the last row that was heard of them.
    `assignment`: the id their holdouts are drawn by, where it is another than theirs."""

    devices: list[str]
    consent: bool | None
    meant: bool = True
    has_city: bool = False
    seq: int = 0
    assignment: str = ""


class Reader:
    """What the notifier may know of a user at one point of the feed."""

    def __init__(self) -> None:
        self.seq = 0
        self.devices: dict[str, str] = {}
        self.consent: bool | None = None
        self.home: int | None = None
        self.added: set[int] = set()
        self.stage: str | None = None
        self.pulse: str | None = None
        self.segments: set[str] = set()
        self.merged = False
        self.assignment = ""

    def takes(self, row: dict[str, Any]) -> None:
        payload, self.seq = row["payload"], row["seq"]
        if row["kind"] == "device_set":
            device = payload["device"]
            self.devices = {i: t for i, t in self.devices.items() if i != device["id"] and t != device["token"]}
            self.devices[device["id"]] = device["token"]
        elif row["kind"] == "user_merged" and payload["from"] == row["user_id"]:
            # whoever is part of another is told nothing any more
            self.merged, self.devices = True, {}
        elif row["kind"] == "assignment_set":
            self.assignment = payload["assignment_id"]
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
        elif row["kind"] == "stage_changed":
            self.stage = payload["to"]
        elif row["kind"] == "activity_changed":
            self.pulse = payload["to"]
        elif row["kind"] == "segment_entered":
            self.segments.add(payload["segment"])
        elif row["kind"] == "segment_exited":
            self.segments.discard(payload["segment"])

    def as_known(self, campaign: dict[str, Any], city: int | None = None) -> Known:
        asked = campaign.get("audience", {})
        meant = (
            (not asked.get("stage") or self.stage in asked["stage"])
            and (not asked.get("activity") or self.pulse in asked["activity"])
            and (not asked.get("segment") or any(s in self.segments for s in asked["segment"]))
            and not any(s in self.segments for s in asked.get("not_segment", []))
        )
        texts = [text for one in campaign.get("templates", {}).values() for text in one.values()]
        gives_up = any("city.theirs" in text and "abort_message" in text for text in texts)
        has_city = gives_up and city is not None and city in {self.home, *self.added}
        return Known(list(self.devices.values()), self.consent, meant, has_city, self.seq, self.assignment)


class Newest:
    """By user, each token that became the newest: by which row of the ledger, and when."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._since: defaultdict[str, list[tuple[int, int, str]]] = defaultdict(list)
        self._sent = {r["message_id"]: r["recorded_at"] for r in snapshot.outcome_rows if r["outcome"] == "sent"}
        readers: defaultdict[str, Reader] = defaultdict(Reader)
        for row in sorted(snapshot.ledger, key=lambda r: (r["shard"], r["seq"])):
            if row["kind"] in ("device_set", "device_removed"):
                reader = readers[row["user_id"]]
                reader.takes(row)
                for token in [*reader.devices.values()][-1:]:
                    self._since[row["user_id"]].append((row["seq"], row["recorded_at"], token))

    def until_sent(self, message: dict[str, Any], seq: int) -> set[str]:
        """Tokens that became the newest behind a number of the ledger and before the message went out; none for a
        message that went out as it was planned."""
        waited = (message.get("attempted_at") or 0) - message["planned_at"] >= WAITED
        if not waited and not message.get("release_at"):
            return set()
        sent = self._sent.get(message["message_id"], 0)
        return {token for at, when, token in self._since[message["user_id"]] if at > seq and when <= sent}
