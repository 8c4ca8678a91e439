"""A process that dies at the worst moment: nothing is lost, nothing is doubled, and nobody has to do anything."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.installation import Rig
from tests.support.traffic import Storms, Traffic

pytestmark = pytest.mark.asyncio(loop_scope="session")

POINTS = {
    "segmenter": [
        "segmenter.before_transaction:15",
        "segmenter.in_transaction:15",
        "segmenter.after_commit:15",
        "segmenter.merge_folded:3",
        "segmenter.merge_committed:3",
        "relay.before_send:60",
        "relay.after_send:60",
    ],
    "ingest": ["ingest.before_send:25", "ingest.after_send:25"],
    "notifier": [
        "notifier.in_transaction:15",
        "notifier.after_commit:15",
        "context.in_transaction:3",
        "context.after_commit:3",
        "notifier.before_wire:8",
        "notifier.after_wire:8",
        "notifier.before_outcome:5",
        "relay.after_send:8",
    ],
}
IN_FLIGHT = 200 + 400
"""Most calls to the provider at once, and most outcomes not yet written: so many a crash may lose."""


@pytest.mark.parametrize("service", POINTS)
async def test_crashes_at_the_worst_moments_change_nothing(rig: Rig, service: str) -> None:
    """Ended hard at one named point after the other, under load, with posts repeated. Pushes that were on the wire may
    end as unknown, where their campaign says to give up rather than to send twice; those of alerts are sent again."""
    points, told = POINTS[service], len(rig.said)
    in_flight = IN_FLIGHT if service == "notifier" else 0
    rig.allow(unknown=in_flight, repeated_sends=in_flight * len(points))
    storms = Storms(1000 + len(service))
    async with Traffic(1000 + len(service), users=150).during(rig, storms=storms):
        await rig.crash_in_turn(service, points)
        await asyncio.sleep(1)
    crashes = [line for line in rig.said[told:] if f"{service} ended (exit 137)" in line]
    assert len(crashes) == len(points), rig.said[told:]
    counts = await rig.equal()
    assert counts["duplicates"] > 0 and counts["messages"] > counts["alert_messages"] > 0
    assert counts["alerts"] > 10 and counts["chains_joined"] > 0
    if service == "segmenter":
        assert counts["merged"] > 0 and counts["forwarded"] > 0
        assert counts["sent_again"] > 0, "the relay repeated nothing: its crash came too early"


@pytest.mark.parametrize(
    ("broker", "service"),
    [("embedded", "gateway"), *(pytest.param("apache", s, marks=pytest.mark.kafka) for s in ("gateway", *POINTS))],
    indirect=["broker"],
    scope="session",
)
async def test_a_service_killed_again_and_again_changes_nothing(rig: Rig, service: str) -> None:
    """Wherever it happens to be. Posts that were not answered are posted again, as phones do."""
    in_flight = 2 * IN_FLIGHT if service == "notifier" else 0
    rig.allow(unknown=in_flight, repeated_sends=in_flight)
    before = rig.restarts[service]
    async with Traffic(1100 + len(service), users=150).during(rig, storms=Storms(1100 + len(service))):
        for _ in range(2):
            await asyncio.sleep(2)
            victim = rig.pid(service)
            rig.kill(service)
            await rig.gone(service, victim)
        await asyncio.sleep(1)
    assert rig.restarts[service] >= before + 2
    await rig.equal()
