"""Does what is watched show what happens? The shipped rules and dashboard on a real Prometheus and real services."""

from __future__ import annotations

import time
from pathlib import Path

import aiohttp
import pytest

from shared.process.metrics import DECLARED
from tests.support import prometheus
from tests.support.installation import Rig, eventually, installed
from tests.support.prometheus import JOBS, Prometheus
from tests.support.traffic import Traffic, instant

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

WATCHED = (*JOBS, "archive")


async def _storm(rig: Rig) -> None:
    """A weather alert by the API, for cities the phones have."""
    body = {
        "id": "storm-1", "kind": "alert", "severity": "Extreme", "areas": [{"city": "Dallas, TX"}],
        "starts_at": instant(time.time()), "ends_at": instant(time.time() + 3600), "data": {"event": "Tornado Warning"},
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {rig.status['admin_key']}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        async with http.post(f"{rig.status['notifier']}/v1/context", json=body) as answer:
            assert answer.status == 202, await answer.text()
        async with http.get(f"{rig.status['segmenter']}/v1/tallies") as answer:
            assert answer.status == 200, await answer.text()


async def _everything_shown(watching: Prometheus) -> None:
    """Each expression of the dashboard returns series."""
    asked = prometheus.queries("15s")
    assert len(asked) > 40

    async def empty() -> str:
        missing = [f"{panel}: {query}" for panel, query in asked if not await watching.query(query)]
        return f"no series: {missing}" if missing else ""

    await eventually(empty, 60, every=1)


async def _adds_up(watching: Prometheus, posted: int) -> None:
    """What the panels count of one event is the same at every step of its road."""
    steps = {
        "gateway": "sum(perennial_gateway_events_total)",
        "ingest": "sum(perennial_ingest_decisions_total)",
        "segmenter": 'sum(perennial_segmenter_events_total{outcome!="forwarded"})'
        ' + sum(perennial_ingest_decisions_total{verdict="rejected"})',
    }

    async def differs() -> str:
        found = {step: await watching.value(query) for step, query in steps.items()}
        return "" if set(found.values()) == {float(posted)} else f"{posted} were posted, {found} counted"

    await eventually(differs, 30)
    assert await watching.value("sum(perennial_working)") == len(WATCHED)
    assert await watching.value("min(perennial_notifier_sending)") == 1
    users = await watching.value("sum(perennial_segmenter_stage_users)")
    assert users == await watching.value("sum(perennial_segmenter_activity_users)") > 0


async def test_the_dashboard_shows_a_running_installation_and_no_alert_fires(tmp_path: Path) -> None:
    """Only if names, labels and services fit together does every expression of every panel find series."""
    prometheus.tool("prometheus")
    async with installed(tmp_path / "home", env={"PERENNIAL_ARCHIVE_PATH": str(tmp_path / "archive")}) as rig:
        async with prometheus.running(tmp_path / "watching", {job: rig.status[job] for job in WATCHED}) as watching:

            async def unseen() -> str:
                up = await watching.value("sum(up)")
                return "" if up == len(WATCHED) else f"{up} of {len(WATCHED)} processes answer"

            await eventually(unseen, 30)
            traffic = Traffic(4601, users=60)
            await traffic.run(rig, 4, rate=100)
            # against the tracking plan
            await rig.post([{"type": "track", "userId": "careless", "event": "Push Notification Tapped"}])
            await _storm(rig)
            await rig.drained()
            await _everything_shown(watching)
            await _adds_up(watching, traffic.posted + 1)

            groups = (await watching.get("rules"))["groups"]
            rules = [rule for group in groups if group["name"] == "perennial" for rule in group["rules"]]
            assert len(rules) == 7
            assert {rule["name"]: rule["state"] for rule in rules if rule["state"] != "inactive"} == {}
            assert {rule["health"] for rule in rules} == {"ok"}

            seen = set(await watching.get("label/__name__/values"))
            told = {m.name if m.kind != "histogram" else f"{m.name}_bucket" for m in DECLARED}
            assert told - seen == set(), "declared, and told by no process"

            await rig.without("ingest")

            async def silent() -> str:
                found = await watching.firing(hastened=True)
                down = [one["what"] for one in found.get("PerennialServiceDown", ()) if one["job"] == "ingest"]
                stands = {one["job"] for one in found.get("PerennialTimeStands", ())}
                return "" if down == ["does not answer"] and stands == {"segmenter", "notifier"} else f"fires: {found}"

            # nobody tells the time any more, so that it stands for both
            await eventually(silent, 60, every=0.5)
