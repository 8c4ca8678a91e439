"""What happened in a demo: the summary of the contract. Everything is read back from the APIs, the metrics and
Postgres; nothing is counted by those who caused it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, get_args

from services.demo.watch import Watch
from shared.contracts.rules import ActivityName

_MESSAGES = """
SELECT campaign, state, reason, count(*) AS messages, count(opened_at) AS opened FROM notifier.message
WHERE planned_at >= $1 GROUP BY campaign, state, reason ORDER BY campaign, state, reason
"""
_VERDICTS = """
SELECT verdict, count(*) AS alerts FROM notifier.context_event WHERE kind = 'nws' AND received_at >= $1
GROUP BY verdict ORDER BY verdict
"""
_CHAINS = "SELECT count(DISTINCT chain_id) FROM notifier.context_event WHERE kind = 'nws' AND received_at >= $1"
_REACHED = """
WITH runs AS (
    SELECT r.run_id, r.city_ids FROM notifier.run r JOIN notifier.context_event c USING (context_id)
    WHERE c.kind = 'nws' AND c.received_at >= $1 AND r.city_ids <> '{}'
)
SELECT (SELECT count(*) FROM runs) AS runs,
    (SELECT count(DISTINCT city) FROM runs, unnest(city_ids) AS city) AS cities,
    (SELECT count(DISTINCT m.user_id) FROM notifier.message m JOIN runs USING (run_id)) AS users
"""

NOT_ACTUAL = ("test_or_draft",)
NOT_LAND = ("test_or_draft", "not_an_alert", "marine")


async def summary(
    watch: Watch, seconds: Mapping[str, float | None], since_ms: int, settled: bool, stages: Sequence[str]
) -> dict[str, Any]:
    """The summary, as the contract names it; messages and alerts are those since `since_ms`. `stages`: the pack's, in
    the order of the journey."""
    await watch.meters.read()
    tallies = await watch.ask("segmenter", "/v1/tallies")
    pushes = await _pushes(watch, since_ms)
    found: dict[str, Any] = {
        "ok": settled and pushes["received_by_sandbox"] >= pushes["sent"],
        "seconds": seconds,
        "events": events(watch),
        "users": tallies["users"],
        "stage": _in_order(tallies["stage"], stages),
        "activity": _in_order(tallies["activity"], get_args(ActivityName)),
        "segment": tallies["segment"],
        "rates": await watch.ask("segmenter", "/v1/rates"),
        "cohorts": (await watch.ask("segmenter", "/v1/cohorts?limit=10"))["items"],
    }
    alerts = await _alerts(watch, since_ms)
    if alerts["features"]:
        found["alerts"] = alerts
    if (rates := found["rates"])["customers"] and rates["orders"]:
        names = ("customers", "repeat_customers", "loyal_customers", "orders", "revenue")
        found["commerce"] = {name: rates[name] for name in names}
    found |= {"pushes": pushes, "lift": await _lift(watch), "versions": await _versions(watch)}
    return found


async def figures(watch: Watch, since_ms: int) -> dict[str, str]:
    """How far it is, in words, while it runs."""
    await watch.meters.read()
    told, pushes = events(watch), await _pushes(watch, since_ms)
    verdicts = await watch.database.fetch(_VERDICTS, since_ms)
    suppressed = ", ".join(f"{reason} {n:,}" for reason, n in pushes["suppressed"].items())
    return {
        "events": f"{told['posted']:,} posted, {told['accepted'] + told['rejected']:,} decided",
        "users": f"{(await watch.ask('segmenter', '/v1/tallies'))['users']:,}",
        "alerts": ", ".join(f"{row['verdict'].replace('_', ' ')} {row['alerts']:,}" for row in verdicts),
        "pushes": f"{pushes['sent']:,} sent, {pushes['received_by_sandbox']:,} arrived, {pushes['opened']:,} opened",
        "sent": ", ".join(
            f"{name} {states['sent']:,}" for name, states in pushes["campaigns"].items() if "sent" in states
        ),
        "suppressed": suppressed,
    }


def _in_order(counts: Mapping[str, int], order: Sequence[str]) -> dict[str, int]:
    """The same counts, those named in `order` first."""
    return {name: counts[name] for name in (*order, *(set(counts) - set(order))) if name in counts}


async def _lift(watch: Watch) -> dict[str, Any]:
    """What each campaign that holds users out did to simulated people; nothing of it is true of real ones."""
    campaigns = (await watch.ask("notifier", "/v1/campaigns"))["items"]
    results = [(c["id"], await watch.ask("notifier", f"/v1/campaigns/{c['id']}/results")) for c in campaigns]
    return {"simulated": True, "campaigns": {name: told["lift"] for name, told in results if told["lift"]}}


def events(watch: Watch) -> dict[str, Any]:
    """Posted: acknowledged by the gateway. Duplicates were accepted by ingest and then found to be known."""
    meters = watch.meters
    return {
        "posted": meters.total("perennial_gateway_events_total"),
        "accepted": meters.total("perennial_ingest_decisions_total", verdict="accepted"),
        "rejected": meters.total("perennial_ingest_decisions_total", verdict="rejected"),
        "duplicates": meters.total("perennial_segmenter_events_total", outcome="duplicate"),
        "rejected_because": meters.by("perennial_ingest_rejections_total", "reason"),
    }


async def _pushes(watch: Watch, since_ms: int) -> dict[str, Any]:
    rows = await watch.database.fetch(_MESSAGES, since_ms)

    def total(state: str) -> int:
        return sum(row["messages"] for row in rows if row["state"] == state)

    because: dict[str, dict[str, int]] = {"suppressed": {}, "failed": {}}
    campaigns: dict[str, dict[str, int]] = {}
    for row in rows:
        if (reasons := because.get(row["state"])) is not None:
            reasons[row["reason"]] = reasons.get(row["reason"], 0) + row["messages"]
        states = campaigns.setdefault(row["campaign"], {})
        states[row["state"]] = states.get(row["state"], 0) + row["messages"]
    return {
        "planned": sum(row["messages"] for row in rows),
        "sent": total("sent"),
        "received_by_sandbox": (await watch.ask("sandbox", "/pushes/count"))["count"],
        "held_out": total("held_out"),
        "waiting": total("waiting"),
        "held": total("held"),
        "suppressed": because["suppressed"],
        "failed": total("failed"),
        "failed_because": because["failed"],
        "unknown": total("unknown"),
        "opened": sum(row["opened"] for row in rows),
        "campaigns": campaigns,
    }


async def _alerts(watch: Watch, since_ms: int) -> dict[str, Any]:
    verdicts = {row["verdict"]: row["alerts"] for row in await watch.database.fetch(_VERDICTS, since_ms)}
    reached = await watch.database.fetchrow(_REACHED, since_ms)
    assert reached is not None
    features = sum(verdicts.values())
    return {
        "features": features,
        "actual": features - sum(verdicts.get(v, 0) for v in NOT_ACTUAL),
        "land": features - sum(verdicts.get(v, 0) for v in NOT_LAND),
        "marine": verdicts.get("marine", 0),
        "chains": await watch.database.fetchval(_CHAINS, since_ms),
        "matched": verdicts.get("matched", 0),
        "told": reached["runs"],
        "cities_matched": reached["cities"],
        "users_matched": reached["users"],
    }


async def _versions(watch: Watch) -> dict[str, Any]:
    try:
        product = version("perennial")
    except PackageNotFoundError:
        product = "0+checkout"
    rules = await watch.database.fetchrow("SELECT version, pack FROM control.rules ORDER BY version DESC LIMIT 1")
    postgres = str(await watch.database.fetchval("SHOW server_version"))
    return {
        "perennial": product,
        "python": platform.python_version(),
        "postgres": postgres.partition(" ")[0],
        "kafka": watch.installation.options.kafka,
        "pack": rules["pack"] if rules else None,
        "rules": rules["version"] if rules else None,
    }
