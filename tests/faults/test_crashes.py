"""A process that dies at the worst moment: nothing is lost, nothing is doubled, and nobody has to do anything."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.installation import Rig
from tests.support.traffic import Traffic

pytestmark = pytest.mark.asyncio(loop_scope="session")

SEEDS = iter(range(1000, 2000))
CRASHES = [
    ("segmenter", "segmenter.before_transaction:15"),
    ("segmenter", "segmenter.in_transaction:15"),
    ("segmenter", "segmenter.after_commit:15"),
    ("segmenter", "relay.before_send:25"),
    ("segmenter", "relay.after_send:25"),
    ("ingest", "ingest.before_send:25"),
    ("ingest", "ingest.after_send:25"),
    ("notifier", "notifier.in_transaction:15"),
    ("notifier", "notifier.after_commit:15"),
    ("notifier", "notifier.before_wire:10"),
    ("notifier", "notifier.after_wire:10"),
    ("notifier", "notifier.before_outcome:5"),
    ("notifier", "relay.after_send:8"),
]
IN_FLIGHT = 200
"""Most calls to the provider at once: so many outcomes a crash may lose."""


@pytest.mark.parametrize(("service", "point"), CRASHES, ids=[f"{s}-{p.partition(':')[0]}" for s, p in CRASHES])
async def test_a_crash_at_the_worst_moment_changes_nothing(rig: Rig, service: str, point: str) -> None:
    """Killed at a named point under load, with posts repeated. Pushes on the wire then may end as unknown: their
    campaign says to give up rather than to send twice."""
    if "wire" in point or "outcome" in point:
        rig.allow(unknown=IN_FLIGHT)
    told = len(rig.said)
    victim = await rig.arm(service, point)
    traffic = Traffic(next(SEEDS), users=120)
    load = asyncio.create_task(traffic.run(rig, 5))
    try:
        await rig.gone(service, victim)
    finally:
        await load
    assert any(f"{service} ended (exit 137)" in line for line in rig.said[told:]), rig.said[told:]
    counts = await rig.equal()
    assert counts["duplicates"] > 0 and counts["messages"] > 0
    if point.startswith("relay.after_send") and service == "segmenter":
        assert counts["sent_again"] > 0, "the relay repeated nothing: the crash came too early"


@pytest.mark.parametrize("service", ["gateway", "ingest", "segmenter", "notifier"])
async def test_a_service_killed_again_and_again_changes_nothing(rig: Rig, service: str) -> None:
    """Wherever it happens to be. Posts that were not answered are posted again, as phones do."""
    rig.allow(unknown=2 * IN_FLIGHT if service == "notifier" else 0)
    load = asyncio.create_task(Traffic(next(SEEDS), users=120).run(rig, 7, rate=300))
    before = rig.restarts[service]
    try:
        for _ in range(2):
            await asyncio.sleep(2)
            victim = rig.pid(service)
            rig.kill(service)
            await rig.gone(service, victim)
    finally:
        await load
    assert rig.restarts[service] >= before + 2
    await rig.equal()
