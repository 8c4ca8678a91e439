"""What happened in a demo: the summary of the contract, and the same as text. Everything is read back from the
APIs, the metrics and Postgres; nothing is counted by those who caused it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from services.demo.watch import Watch

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
    WHERE c.kind = 'nws' AND c.received_at >= $1
)
SELECT (SELECT count(*) FROM runs) AS runs,
    (SELECT count(DISTINCT city) FROM runs, unnest(city_ids) AS city) AS cities,
    (SELECT count(DISTINCT m.user_id) FROM notifier.message m JOIN runs USING (run_id)) AS users
"""

NOT_ACTUAL = ("test_or_draft",)
NOT_LAND = ("test_or_draft", "not_an_alert", "marine")


async def summary(watch: Watch, seconds: Mapping[str, float | None], since_ms: int, settled: bool) -> dict[str, Any]:
    """The summary, as INTERFACES names it; messages and alerts are those since `since_ms`."""
    await watch.meters.read()
    tallies = await watch.ask("segmenter", "/v1/tallies")
    pushes = await _pushes(watch, since_ms)
    found: dict[str, Any] = {
        "ok": settled and pushes["received_by_sandbox"] >= pushes["sent"],
        "seconds": seconds,
        "events": events(watch),
        "users": tallies["users"],
        "stage": tallies["stage"],
        "activity": tallies["activity"],
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
    found |= {"pushes": pushes, "lift": {}, "versions": await _versions(watch)}
    return found


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

    suppressed: dict[str, int] = {}
    campaigns: dict[str, dict[str, int]] = {}
    for row in rows:
        if row["state"] == "suppressed":
            suppressed[row["reason"]] = suppressed.get(row["reason"], 0) + row["messages"]
        states = campaigns.setdefault(row["campaign"], {})
        states[row["state"]] = states.get(row["state"], 0) + row["messages"]
    return {
        "planned": sum(row["messages"] for row in rows),
        "sent": total("sent"),
        "received_by_sandbox": (await watch.ask("sandbox", "/pushes/count"))["count"],
        "held_out": total("held_out"),
        "suppressed": suppressed,
        "failed": total("failed"),
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


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The summary as text, a fact a line."""
    told, pushes, rates = found["events"], found["pushes"], found["rates"]
    yield "What happened"
    yield _line("events", {name: told[name] for name in ("posted", "accepted", "rejected", "duplicates")})
    if told["rejected_because"]:
        yield _line("  rejected", told["rejected_because"])
    yield f"  {'users':<12} {found['users']:,}"
    yield _line("  stage", found["stage"])
    yield _line("  activity", found["activity"])
    shares = ("activation_percent", "repeat_percent", "loyal_percent")
    yield f"  {'rates':<12} " + ", ".join(f"{name.removesuffix('_percent')} {rates[name]:g} %" for name in shares)
    if shop := found.get("commerce"):
        yield _line("shop", {**shop, "revenue": f"{shop['revenue'] / 100:,.2f}"})
    top = [f"{c['name']}, {c['state']} ({c['relation']}) {c['users']}" for c in found["cohorts"][:5]]
    if top:
        yield f"  {'cohorts':<12} " + "; ".join(top)
    if alerts := found.get("alerts"):
        yield (
            f"  {'alerts':<12} {alerts['features']} in the feed, {alerts['actual']} actual: {alerts['marine']} marine, "
            f"{alerts['land']} land; {alerts['chains']} chains"
        )
        yield (
            f"  {'':<12} {alerts['matched']} hold in known cities, {alerts['told']} of them severe, in "
            f"{alerts['cities_matched']:,} cities; {alerts['users_matched']:,} users live there or added them"
        )
    names = ("planned", "sent", "received_by_sandbox", "held_out", "opened")
    yield _line("pushes", {name.replace("_", " "): pushes[name] for name in names})
    for trouble in ("failed", "unknown"):
        if pushes[trouble]:
            yield _line(f"  {trouble}", {"pushes": pushes[trouble]})
    yield _line("  suppressed", pushes["suppressed"] or {"none": 0})
    for campaign, states in pushes["campaigns"].items():
        yield _line(f"  {campaign}", states)
    seconds = {name: f"{value:.1f} s" for name, value in found["seconds"].items() if value is not None}
    yield _line("time", seconds)


def _line(label: str, values: Mapping[str, Any]) -> str:
    head = label if label.startswith("  ") else f"  {label}"
    shown = (f"{name} {n:,}" if isinstance(n, int) else f"{name} {n}" for name, n in values.items())
    return f"{head:<14} " + ", ".join(shown)


def curl(gateway: str, write_key: str, user_id: str) -> str:
    """A command that makes a new user open the app, who is then welcomed by a push."""
    event = {
        "userId": user_id,
        "event": "Application Opened",
        "context": {
            "device": {"id": f"phone-{user_id}", "type": "ios", "token": f"token-{user_id}"},
            "locale": "en-US",
            "timezone": "America/New_York",
        },
    }
    return (
        f"curl -u {write_key}: -H 'Content-Type: application/json' \\\n"
        f"    -d '{json.dumps(event)}' \\\n    {gateway}/v1/track"
    )
