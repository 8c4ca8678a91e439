"""Whether caps, gaps, quiet hours, repeats and sunset were kept by what went out, and stopped nothing without need.

A push counts by its last attempt; one that was planned earlier and had no end yet counts as if it went out then. Where
the rows do not tell which of two came first, either is believed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from tests.support.oracle_snapshot import Snapshot

HOUR, DAY = 3_600_000, 86_400_000
REASONS = {"cap", "gap", "repeat", "quiet_hours", "sunset"}
WENT = {"sent", "failed", "unknown"}
NEVER = 1 << 62


def check(snapshot: Snapshot) -> list[str]:
    """Every push that should not have gone out by then, and every one that was stopped though it might."""
    rules = snapshot.rules[max(snapshot.rules)]
    campaigns = {c["id"]: c for c in rules.get("campaigns", []) if not c.get("safety")}
    limits: dict[str, Any] = rules.get("limits") or {}
    zones = _zones(snapshot, limits.get("quiet_hours", {}).get("zone", "UTC"))
    by_user: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    found = []
    for message in snapshot.messages:
        if message["campaign"] in campaigns:
            by_user[message["user_id"]].append(message)
        elif message["reason"] in REASONS:
            found.append(f"message {message['message_id']} is of no campaign that {message['reason']} could stop")
    for user, messages in by_user.items():
        for message in messages:
            campaign = campaigns[message["campaign"]]
            others = [o for o in messages if o is not message]
            for zone in zones[user]:
                faults = list(_faults(message, campaign, others, campaigns, limits, zone))
                if not faults:
                    break
            found += [f"message {message['message_id']} of {user}: {fault}" for fault in faults]
    return found


def _faults(
    message: dict[str, Any],
    campaign: dict[str, Any],
    others: list[dict[str, Any]],
    campaigns: dict[str, dict[str, Any]],
    limits: dict[str, Any],
    zone: str,
) -> Iterator[str]:
    """What is wrong with what became of the message, if its user's clock stands in that zone."""
    at = message["planned_at"]
    sure = [o for o in others if _went_at(o) < NEVER and o["planned_at"] < at]
    perhaps = [o for o in others if o["planned_at"] <= at and (o in sure or _may_count(o, at))]
    reached = {
        "cap": _cap(campaign, campaigns, limits, zone, at),
        "gap": lambda past: any(_went_at(o) > at - limits.get("gap_minutes", 0) * 60_000 for o in past),
        "repeat": lambda past: _repeats(campaign, message, past, campaigns, at),
        "sunset": lambda past: 0 < limits.get("sunset_pushes", 0) <= _unanswered(past, at),
    }
    if not limits.get("gap_minutes"):
        del reached["gap"]
    if message["state"] in WENT:
        yield from (f"went out though stopped by {name}" for name, full in reached.items() if full(sure))
        went_at = message["attempted_at"]
        quiet = not campaign.get("any_hour") and _quiet(limits.get("quiet_hours", {}), zone, went_at or 0)
        if went_at is not None and quiet:
            yield f"went out at {_wall(zone, went_at)} in {zone}, in quiet hours"
    elif message["state"] == "suppressed" and message["reason"] in REASONS:
        reason = message["reason"]
        if reason == "quiet_hours":
            if campaign.get("any_hour") or not _quiet(limits.get("quiet_hours", {}), zone, at):
                yield f"stopped by quiet hours at {_wall(zone, at)} in {zone}"
        elif reason != "repeat" and (reason not in reached or not reached[reason](perhaps)):
            yield f"stopped by {reason} without need"


def _went_at(message: dict[str, Any]) -> int:
    """When it was attempted last; NEVER where it was not."""
    at = message["attempted_at"]
    return at if message["state"] in WENT and at is not None else NEVER


def _may_count(other: dict[str, Any], at: int) -> bool:
    """Whether it may have been on its way at that moment: planned, and neither sent nor given up."""
    stopped_at_once = other["state"] in ("suppressed", "held_out") and other.get("content_key", "") == ""
    return not stopped_at_once and other["state"] not in ("held", "waiting") and (other["finished_at"] or NEVER) >= at


def _cap(
    campaign: dict[str, Any], campaigns: dict[str, dict[str, Any]], limits: dict[str, Any], zone: str, at: int
) -> Any:
    def full(past: list[dict[str, Any]]) -> bool:
        for cap in limits.get("caps", []):
            named = cap.get("category", "")
            if named and named != campaign.get("category", "lifecycle"):
                continue
            same = [o for o in past if not named or campaigns[o["campaign"]].get("category", "lifecycle") == named]
            if cap.get("window", "rolling") == "rolling":
                inside = [o for o in same if _went_at(o) > at - cap["hours"] * HOUR]
            else:
                inside = [o for o in same if _went_at(o) >= at or _same(cap["window"], zone, _went_at(o), at)]
            if len(inside) >= cap["most"]:
                return True
        return False

    return full


def _same(window: str, zone: str, one: int, other: int) -> bool:
    """Whether both instants lie in one calendar day, week or month there."""
    a, b = (datetime.fromtimestamp(ms / 1000, UTC).astimezone(ZoneInfo(zone)) for ms in (one, other))
    if window == "day":
        return a.date() == b.date()
    if window == "week":
        return a.isocalendar()[:2] == b.isocalendar()[:2]
    return (a.year, a.month) == (b.year, b.month)


def _repeats(
    campaign: dict[str, Any],
    message: dict[str, Any],
    past: list[dict[str, Any]],
    campaigns: dict[str, dict[str, Any]],
    at: int,
) -> bool:
    days, offer = campaign.get("no_repeat_days", 0), campaign.get("offer", "")

    def alike(other: dict[str, Any]) -> bool:
        theirs = campaigns[other["campaign"]].get("offer", "")
        if offer or theirs:
            return bool(offer == theirs)
        return (other["title"], other["body"]) == (message["title"], message["body"])

    return days > 0 and any(_went_at(o) > at - days * DAY and alike(o) for o in past)


def _unanswered(past: list[dict[str, Any]], at: int) -> int:
    recent = [o for o in past if _went_at(o) > at - 365 * DAY]
    answered = max((_went_at(o) for o in recent if o["opened_at"] is not None and o["opened_at"] <= at), default=-1)
    return sum(_went_at(o) > answered for o in recent)


def _wall(zone: str, ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone(ZoneInfo(zone)).strftime("%H:%M")


def _quiet(hours: dict[str, Any], zone: str, ms: int) -> bool:
    begin, end, wall = hours.get("from", ""), hours.get("to", ""), _wall(zone, ms)
    if not begin:
        return False
    return begin <= wall < end if begin < end else not end <= wall < begin


def _zones(snapshot: Snapshot, otherwise: str) -> defaultdict[str, list[str]]:
    """By user, every zone their clock may have stood in, the last one first."""
    found: defaultdict[str, list[str]] = defaultdict(lambda: [otherwise])
    for row in snapshot.ledger:
        if row["kind"] == "profile_set" and row["payload"].get("timezone"):
            try:
                zone = ZoneInfo(row["payload"]["timezone"]).key
            except (KeyError, ValueError, OSError):
                continue
            found[row["user_id"]].insert(0, zone)
    return found
