"""Does the oracle find a push that went out against a limit, and one that was stopped without need?"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support import oracle_limits
from tests.support.oracle_snapshot import Snapshot

HOUR, DAY = 3_600_000, 86_400_000
NOON = int(datetime(2026, 6, 10, 16, tzinfo=UTC).timestamp() * 1000)
"""In New York."""
NIGHT = {"from": "22:00", "to": "07:00", "zone": "America/New_York"}


def message(at: int, state: str = "sent", reason: str = "", user: str = "anna", **more: Any) -> dict[str, Any]:
    went = state in ("sent", "failed", "unknown")
    row = {
        "message_id": f"{user}-{at}", "user_id": user, "campaign": "welcome", "state": state, "reason": reason,
        "planned_at": at, "attempted_at": at + 5 if went else None, "finished_at": at + 9 if went else None,
        "opened_at": None, "content_key": "k" if went else "", "title": "Hi", "body": "There", "release_at": 0,
    }  # fmt: skip
    return row | more


def found(messages: list[dict[str, Any]], zone: str = "", no_repeat_days: int = 0, **limits: Any) -> list[str]:
    campaigns = [{"id": "welcome", "no_repeat_days": no_repeat_days}, {"id": "alarm", "safety": True}]
    snapshot = Snapshot(1, {1: {"campaigns": campaigns, "limits": limits}})
    snapshot.messages = messages
    if zone:
        snapshot.ledger = [{"kind": "profile_set", "user_id": "anna", "payload": {"timezone": zone}}]
    return oracle_limits.check(snapshot)


TWO = [message(NOON), message(NOON + HOUR)]
STOPPED = [message(NOON), message(NOON + HOUR, "suppressed", "cap")]


@pytest.mark.parametrize(
    ("messages", "how", "says"),
    [
        (TWO, {"caps": [{"most": 1, "hours": 2}]}, "by cap"),
        ([message(NOON), message(NOON + HOUR + 5)], {"caps": [{"most": 1, "hours": 1}]}, ""),
        (TWO, {"caps": [{"most": 1, "window": "day", "category": "lifecycle"}]}, "by cap"),
        (TWO, {"caps": [{"most": 1, "window": "day", "category": "news"}]}, ""),
        (TWO, {"caps": [{"most": 1, "window": "day"}], "zone": "Asia/Tokyo"}, "by cap"),
        ([message(NOON - 2 * HOUR), message(NOON)], {"caps": [{"most": 1, "window": "day"}], "zone": "Asia/Tokyo"}, ""),
        (STOPPED, {"caps": [{"most": 1, "hours": 2}]}, ""),
        (STOPPED, {"caps": [{"most": 2, "hours": 2}]}, "without need"),
        (TWO, {"gap_minutes": 61}, "by gap"),
        (TWO, {"gap_minutes": 59}, ""),
        (TWO, {"no_repeat_days": 1}, "by repeat"),
        ([message(NOON), message(NOON + HOUR, body="Else")], {"no_repeat_days": 1}, ""),
        (TWO, {"sunset_pushes": 1}, "by sunset"),
        ([message(NOON, opened_at=NOON + 9), message(NOON + HOUR)], {"sunset_pushes": 1}, ""),
        ([message(NOON + 11 * HOUR)], {"quiet_hours": NIGHT}, "went out at 23:00 in America/New_York"),
        ([message(NOON + 11 * HOUR)], {"quiet_hours": NIGHT, "zone": "Asia/Tokyo"}, ""),
        ([message(NOON, "suppressed", "quiet_hours")], {"quiet_hours": NIGHT}, "stopped by quiet hours at 12:00"),
        ([message(NOON, "suppressed", "cap", campaign="alarm")], {}, "of no campaign that cap could stop"),
        ([message(NOON, campaign="alarm"), message(NOON + 1)], {"caps": [{"most": 1, "hours": 2}]}, ""),
    ],
)
def test_each_limit_is_judged(messages: list[dict[str, Any]], how: dict[str, Any], says: str) -> None:
    said = found(messages, **how)
    assert (len(said) == 1 and says in said[0]) if says else not said, said


def test_what_was_on_its_way_may_have_stopped_another() -> None:
    """It was planned first and refused only later: until then nobody could know that it would not go out."""
    refused = message(NOON, "suppressed", "no_consent", content_key="k", finished_at=NOON + 2 * HOUR)
    assert not found([refused, message(NOON + HOUR, "suppressed", "cap")], caps=[{"most": 1, "hours": 9}])
    assert found([refused, message(NOON + 3 * HOUR, "suppressed", "cap")], caps=[{"most": 1, "hours": 9}])
