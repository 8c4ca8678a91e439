"""Does the oracle find what a campaign that waits for an event or a segment should not have done, or not yet?"""

from __future__ import annotations

from typing import Any

import pytest

from shared.contracts.events import FeedTime, encode
from tests.support import oracle_messages
from tests.support.oracle_messages import message_id_of
from tests.support.oracle_snapshot import Snapshot
from tests.support.oracle_topics import Seen

T0, MINUTE = 1_760_000_000_000, 60_000
SEARCHED: dict[str, Any] = {
    "id": "searched", "templates": {"en": {"title": "Hi", "body": "{% if city.theirs %}{% abort_message %}{% endif %}"}},
    "trigger": {"type": "event", "event": ["A"], "delay_minutes": 60, "unless": ["B"], "same": ["city"]},
    "audience": {"not_segment": ["angry"]},
}  # fmt: skip
KEEN: dict[str, Any] = {
    "id": "keen", "templates": {}, "trigger": {"type": "segment_entered", "segment": ["keen"], "delay_minutes": 60},
}  # fmt: skip
AT_ONCE: dict[str, Any] = {
    "id": "once", "templates": {}, "trigger": {"type": "event", "event": ["C"], "where": {"size": ["m", 1]}},
}  # fmt: skip


class Scene:
    """One user: rows of the ledger, with times told after some of them, and the messages that came of it."""

    def __init__(self) -> None:
        self.ledger: list[dict[str, Any]] = []
        self.feed: list[Seen] = []
        self.messages: list[dict[str, Any]] = []
        self.watermark = T0
        self.tells(0, "device_set", device={"id": "d", "type": "ios", "token": "t"})

    def tells(self, minute: float, kind: str, **payload: Any) -> Scene:
        at, seq = T0 + round(minute * MINUTE), len(self.ledger) + 1
        self.ledger.append(
            {"shard": 0, "seq": seq, "user_id": "u", "kind": kind, "payload": payload, "occurred_at": at, "src": seq}
            | {"cause_id": f"m{seq}", "recorded_at": at}
        )
        return self

    def event(self, minute: float, name: str, city: int | None = None, mode: str = "live", **told: Any) -> Scene:
        payload = {"event": name, "mode": mode, "properties": told} | ({"city_id": city} if city else {})
        return self.tells(minute, "moment", **payload)

    def time(self, minute: float) -> Scene:
        self.watermark = T0 + round(minute * MINUTE)
        value = encode(FeedTime(1, len(self.ledger), self.watermark))
        self.feed.append(Seen(len(self.feed), 0, b"", value, {}))
        return self

    def made(
        self, campaign: dict[str, Any], occurrence: str, seq: int, minute: float, state: str, reason: str = "",
        token: str = "t", sent: float = 0.0,
    ) -> Scene:  # fmt: skip
        """A message of what row `seq` told, judged at that minute, and sent at another if it had to wait."""
        row, sent_at = self.ledger[seq - 1], T0 + round((sent or minute) * MINUTE)
        delay = campaign["trigger"].get("delay_minutes")
        self.messages.append({
            "message_id": message_id_of(campaign, "u", occurrence, row["occurred_at"]), "user_id": "u", "run_id": "",
            "campaign": campaign["id"], "state": state, "reason": reason, "planned_at": T0 + round(minute * MINUTE),
            "cause_seq": seq, "cause_src": row["src"], "attempts": 1, "token": token, "shard": 0,
            "release_at": row["occurred_at"] + delay * MINUTE if delay else 0,
            "attempted_at": sent_at,
        })  # fmt: skip
        return self

    def found(self) -> list[str]:
        rules = {"stages": [], "rates": {}, "activity": {}, "signals": {}, "campaigns": [SEARCHED, KEEN, AT_ONCE]}
        outcomes = [
            {"message_id": m["message_id"], "outcome": m["state"], "recorded_at": m["attempted_at"]}
            for m in self.messages
            if m["state"] != "waiting"
        ]
        snapshot = Snapshot(
            1, {1: rules}, salt="s", ledger=self.ledger, feed={0: self.feed}, messages=self.messages,
            outcome_rows=outcomes, times=[{"shard": 0, "watermark": self.watermark}],
        )  # fmt: skip
        return oracle_messages.check(snapshot)


def newer(minute: float) -> Scene:
    """Something happens, and then the user has another phone."""
    phone = {"id": "d2", "type": "ios", "token": "t2"}
    return Scene().event(0, "C", size="m").tells(minute, "device_set", device=phone)


def searched() -> Scene:
    return Scene().event(0, "A", 7)


RIGHT: dict[str, Scene] = {
    "sent": searched().time(60).made(SEARCHED, "moment:A:m2", 2, 60.1, "sent"),
    "waiting": searched().time(59).made(SEARCHED, "moment:A:m2", 2, 0, "waiting"),
    "called off": searched().event(59, "B", 7).time(60).made(SEARCHED, "moment:A:m2", 2, 59, "suppressed", "called_off"),
    "another city": searched().event(59, "B", 8).time(60).made(SEARCHED, "moment:A:m2", 2, 60, "sent"),
    "too late": searched().event(60, "B", 7).time(60).made(SEARCHED, "moment:A:m2", 2, 60, "sent"),
    "before": searched().event(-1, "B", 7).time(60).made(SEARCHED, "moment:A:m2", 2, 60, "sent"),
    "read too late": searched().time(60).event(59, "B", 7).made(SEARCHED, "moment:A:m2", 2, 60, "sent"),
    "read just in time": searched().time(60).event(59, "B", 7).made(
        SEARCHED, "moment:A:m2", 2, 60, "suppressed", "called_off"
    ),
    "withdrawn": searched().tells(2, "consent_set", location=False).made(
        SEARCHED, "moment:A:m2", 2, 2, "suppressed", "called_off"
    ),
    "not meant": searched().tells(3, "segment_entered", segment="angry").time(60).made(
        SEARCHED, "moment:A:m2", 2, 60, "suppressed", "not_in_audience"
    ),
    "has the city": searched().tells(3, "cohort_entered", relation="added", city_id=7).time(60).made(
        SEARCHED, "moment:A:m2", 2, 60, "suppressed", "aborted"
    ),
    "without a city": Scene().event(0, "A").time(60),
    "imported": Scene().event(0, "A", 7, "import").time(60),
    "still in it": Scene().tells(0, "segment_entered", segment="keen").time(60).made(
        KEEN, f"segment_entered:keen:{T0}", 2, 60, "sent"
    ),
    "left": Scene().tells(0, "segment_entered", segment="keen").tells(9, "segment_exited", segment="keen").made(
        KEEN, f"segment_entered:keen:{T0}", 2, 9, "suppressed", "called_off"
    ),
    "at once": Scene().event(0, "C", size="m").made(AT_ONCE, "moment:C:m2", 2, 0, "sent"),
    "of another size": Scene().event(0, "C", size=True),
    "aimed again": newer(1).made(AT_ONCE, "moment:C:m2", 2, 0, "sent", token="t2", sent=2),
    "not heard of in time": newer(1).made(AT_ONCE, "moment:C:m2", 2, 0, "sent", sent=2),
}  # fmt: skip
WRONG: dict[str, tuple[Scene, str]] = {
    "missing": (searched().time(60), "is missing"),
    "too early": (searched().time(59).made(SEARCHED, "moment:A:m2", 2, 59.9, "sent"), "was due at"),
    "not called off": (
        searched().event(59, "B", 7).time(60).made(SEARCHED, "moment:A:m2", 2, 60, "sent"), "should be called off",
    ),
    "called off by nothing": (
        searched().event(59, "B", 8).made(SEARCHED, "moment:A:m2", 2, 59, "suppressed", "called_off"),
        "nothing asks for that",
    ),
    "sent to whom it is not for": (
        searched().event(1, "X").made(SEARCHED, "moment:A:m2", 2, 60, "suppressed", "not_in_audience"), "should be ('sent'",
    ),
    "of an import": (Scene().event(0, "A", 7, "import").made(SEARCHED, "moment:A:m2", 2, 60, "sent"), "should not be"),
    "of another value": (Scene().event(0, "C", size="l").made(AT_ONCE, "moment:C:m2", 2, 0, "sent"), "should not be"),
    "stale": (Scene().event(0, "C", size="m").made(AT_ONCE, "moment:C:m2", 2, 61, "sent"), "'stale'"),
    "left, and told": (
        Scene().tells(0, "segment_entered", segment="keen").tells(9, "segment_exited", segment="keen").made(
            KEEN, f"segment_entered:keen:{T0}", 2, 60, "sent"
        ),
        "should be called off",
    ),
    "aimed again without need": (newer(0).made(AT_ONCE, "moment:C:m2", 2, 0, "sent", token="t2"), "went to t2, not to t"),
    "aimed at what came later": (
        newer(3).made(AT_ONCE, "moment:C:m2", 2, 0, "sent", token="t2", sent=2), "went to t2, not to t",
    ),
    "aimed at what was": (
        newer(-1).event(0, "C", size="m").made(AT_ONCE, "moment:C:m4", 4, 0, "sent", sent=2), "went to t, not to t2",
    ),
    "forgotten": (
        Scene().event(-90, "A", 7).time(60).made(SEARCHED, "moment:A:m2", 2, 0, "waiting"), "is still waiting",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", RIGHT)
def test_nothing_is_found_where_nothing_is_wrong(what: str) -> None:
    assert RIGHT[what].found() == []


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_found(what: str) -> None:
    scene, says = WRONG[what]
    assert any(says in one for one in scene.found()), scene.found()
