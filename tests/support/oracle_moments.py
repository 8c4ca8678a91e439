"""Which events campaigns wait for, what each asks for, and what calls that off again."""

from __future__ import annotations

from typing import Any, NamedTuple

MINUTE = 60_000
Row = dict[str, Any]


class Asked(NamedTuple):
    """What a ledger row asks of a campaign. `due`: when the delay is over (None: there is none)."""

    occurrence: str
    due: int | None


def moment(campaigns: list[Row], listed: dict[str, list[str]], event: Row) -> Row | None:
    """The row an event is told by, without its user's state, which the reader knows; None where nobody waits."""
    age, oldest = event["received_at"] - event["occurred_at"], -1
    shown: set[str] = set()
    for campaign in campaigns:
        trigger = campaign["trigger"]
        begins = trigger["type"] == "event" and event["name"] in trigger["event"]
        if not begins and not (trigger["type"] == "event" and event["name"] in trigger.get("unless", [])):
            continue
        oldest = max(oldest, trigger.get("delay_minutes", 0) * MINUTE + campaign.get("freshness_seconds", 3600) * 1000)
        shown |= set(trigger.get("same", [])) - {"city"}
        if begins:
            texts = [text for template in campaign["templates"].values() for text in template.values()]
            shown |= set(trigger.get("where", {}))
            shown |= {name for name in listed.get(event["name"], []) if any(name in text for text in texts)}
    if age > oldest:
        return None
    told = {name: value for name, value in event["properties"].items() if name in shown and type(value) is not dict}
    city = {} if event["city_id"] is None else {"city_id": event["city_id"]}
    return {"event": event["name"], "mode": event.get("mode", "live"), "properties": told, **city}


def asks(campaign: Row, row: Row) -> Asked | None:
    """What the row sets going of a campaign that waits for a change, an event or a segment."""
    trigger, payload = campaign["trigger"], row["payload"]
    if row.get("cause_type") == "merge":
        return None  # it was news under the other id
    due = row["occurred_at"] + trigger["delay_minutes"] * MINUTE if trigger.get("delay_minutes") else None
    if trigger["type"] == "event":
        if row["kind"] != "moment" or payload["event"] not in trigger["event"] or payload["mode"] == "import":
            return None
        if any(not _among(payload["properties"].get(n), values) for n, values in trigger.get("where", {}).items()):
            return None
        if any(_agreed(row, name) is None for name in trigger.get("same", [])):
            return None
        return Asked(f"moment:{payload['event']}:{row['cause_id']}", due)
    if trigger["type"] != row["kind"]:
        return None
    if row["kind"].startswith("segment"):
        if payload["segment"] not in trigger["segment"]:
            return None
        return Asked(f"{row['kind']}:{payload['segment']}:{row['occurred_at']}", due)
    before, after = payload["from"], payload["to"]
    if (trigger.get("from") and before not in trigger["from"]) or (trigger["to"] and after not in trigger["to"]):
        return None
    return Asked(f"{row['kind']}:{before or ''}>{after}:{row['occurred_at']}", None)


def ends(campaign: Row, first: Row, due: int, row: Row) -> bool:
    """Whether a later row of the user calls off what the first one asked for."""
    trigger = campaign["trigger"]
    if row["kind"] == "consent_set":
        withdrawn = {purpose for purpose, given in row["payload"].items() if given is False}
        return "city_id" in first["payload"] and not withdrawn.isdisjoint({"location", "search_history"})
    if not first["occurred_at"] <= row["occurred_at"] < due:
        return False
    if trigger["type"] == "event":
        if row["kind"] != "moment" or row["payload"]["event"] not in trigger.get("unless", []):
            return False
        return all(_among(_agreed(row, n), [_agreed(first, n)]) for n in trigger.get("same", []))
    back = "segment_exited" if trigger["type"] == "segment_entered" else "segment_entered"
    return bool(row["kind"] == back and row["payload"]["segment"] == first["payload"]["segment"])


def _agreed(row: Row, name: str) -> Any:
    return row["payload"].get("city_id") if name == "city" else row["payload"]["properties"].get(name)


def _among(value: Any, several: list[Any]) -> bool:
    """JSON tells true from 1, and 1 from nothing else."""
    return any(value == one and (type(value) is bool) is (type(one) is bool) for one in several)
