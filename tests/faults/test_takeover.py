"""Two of a kind: shards pass from one process to another under load, and a frozen owner wakes up too late."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from services.local import definitions
from services.packs import install_version
from tests.support.installation import Rig
from tests.support.traffic import Traffic

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("service", ["segmenter", "notifier"])
async def test_shards_pass_to_a_second_process_and_back(rig: Rig, service: str) -> None:
    """It joins under load, takes its share, and is killed."""
    load = asyncio.create_task(Traffic(3001, users=120).run(rig, 16, rate=250))
    try:
        other = await rig.second(service)
        url = other.env["URL"]

        await rig.owned(service, url, rig.status[service])
        await asyncio.sleep(1.5)
        rig.allow(unknown=200 if service == "notifier" else 0)
        other.kill()
        await rig.owned(service, rig.status[service])
    finally:
        await load
    await rig.equal()


@pytest.mark.long
async def test_a_frozen_owner_writes_nothing_when_it_wakes(rig: Rig) -> None:
    """It stops as a machine would, for longer than its session; another takes over. Its late write is refused, and it
    takes its share again: no shard stays without an owner."""
    other = await rig.second("segmenter")
    url = other.env["URL"]
    for seed, point in enumerate(("before_transaction", "in_transaction"), 3002):
        await rig.owned("segmenter", url, rig.status["segmenter"])
        frozen = await rig.arm("segmenter", f"segmenter.{point}:40:stop")
        load = asyncio.create_task(Traffic(seed, users=120).run(rig, 16, rate=250))
        try:
            await rig.frozen(frozen)
            await rig.owned("segmenter", url)
            await asyncio.sleep(1)
            rig.cont(frozen)
            await rig.owned("segmenter", url, rig.status["segmenter"])
            assert rig.pid("segmenter") == frozen, f"{point}: it was to wake up, not to be started anew"
            if point == "before_transaction":
                late = await rig.metric(rig.status["segmenter"], "perennial_fenced_total", service="segmenter")
                assert late >= 1, "its late write was not refused: it wrote none"
        finally:
            await load
    await rig.equal()


@pytest.mark.long
async def test_two_ingests_under_different_rules_decide_once(rig: Rig) -> None:
    """One freezes with decisions in hand; the other decides the same records by newer rules; then the first one's
    decisions arrive after all. The first in the log counts, whoever wrote it."""
    before = await rig.equal()
    async with rig.database() as connection:
        current = await definitions.version(connection)
        assert current is not None
        old = await connection.fetchval("SELECT max(version) FROM control.rules")
        stricter = msgspec.structs.replace(current, intake=msgspec.structs.replace(current.intake, too_old_days=0))
        new = (await install_version(connection, stricter)).version
    other = await rig.second("ingest", PERENNIAL_INGEST_RULES_VERSION=str(new))
    url = other.env["URL"]
    await rig.owned("ingest", url, rig.status["ingest"])
    frozen = await rig.arm("ingest", "ingest.before_send:40:stop", PERENNIAL_INGEST_RULES_VERSION=str(old))
    load = asyncio.create_task(Traffic(3003, users=120).run(rig, 18, rate=250))
    try:
        await rig.frozen(frozen)
        await rig.owned("ingest", url)
        await asyncio.sleep(1)
        rig.cont(frozen)
        await rig.owned("ingest", url, rig.status["ingest"])
    finally:
        await load
    async with rig.database() as connection:
        await definitions.rollback(connection, old)
    counts = await rig.equal()
    assert counts["decided_again"] > before["decided_again"], counts
    assert counts["decided_otherwise"] > before["decided_otherwise"], (
        "no record was decided otherwise: nothing was shown"
    )
    await rig.restart("ingest")
