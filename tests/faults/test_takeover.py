"""Two of a kind: shards pass from one process to another under load, and a frozen owner wakes up too late."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from services.local import definitions
from services.packs import install_version
from tests.support.installation import Rig, eventually
from tests.support.traffic import Traffic

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def owned(rig: Rig, url: str, service: str) -> float:
    return await rig.metric(url, "perennial_owned_shards", service=service)


async def everything_owned(rig: Rig, service: str, *urls: str, seconds: float = 45) -> None:
    """No shard is orphaned: what the processes own adds up to all of them."""

    async def orphaned() -> str:
        held = [await owned(rig, url, service) for url in urls]
        return "" if sum(held) == rig.status["shards"] else f"{service}: shards owned: {held}"

    await eventually(orphaned, seconds)


@pytest.mark.parametrize("service", ["segmenter", "notifier"])
async def test_shards_pass_to_a_second_process_and_back(rig: Rig, service: str) -> None:
    """It joins under load, takes its share, and is killed."""
    load = asyncio.create_task(Traffic(3001, users=120).run(rig, 16, rate=250))
    try:
        other = await rig.second(service)
        url = other.env["URL"]

        async def shared() -> str:
            held = await owned(rig, url, service)
            return "" if 0 < held < rig.status["shards"] else f"the second owns {held}"

        await eventually(shared, 40)
        await asyncio.sleep(1.5)
        rig.allow(unknown=200 if service == "notifier" else 0)
        other.kill()
        await everything_owned(rig, service, rig.status[service])
    finally:
        await load
    await rig.equal()


@pytest.mark.parametrize("point", ["before_transaction", "in_transaction"])
async def test_a_frozen_owner_writes_nothing_when_it_wakes(rig: Rig, point: str) -> None:
    """It stops as a machine would, for longer than its session; another takes over. Its late write is refused, and it
    takes its share again: no shard stays without an owner."""
    other = await rig.second("segmenter")
    url = other.env["URL"]
    frozen = await rig.arm("segmenter", f"segmenter.{point}:40:stop")
    load = asyncio.create_task(Traffic(3002, users=120).run(rig, 16, rate=250))
    rig.stopped(frozen)
    try:
        await everything_owned(rig, "segmenter", url)
        await asyncio.sleep(1)
        rig.cont(frozen)
        await everything_owned(rig, "segmenter", url, rig.status["segmenter"])
        assert rig.pid("segmenter") == frozen, "it was to wake up, not to be started anew"
        if point == "before_transaction":
            late = await rig.metric(rig.status["segmenter"], "perennial_fenced_total", service="segmenter")
            assert late >= 1, "its late write was not refused: it wrote none"
    finally:
        await load
    await rig.equal()


async def test_two_ingests_under_different_rules_decide_once(rig: Rig) -> None:
    """One freezes with decisions in hand; the other decides the same records by newer rules; then the first one's
    decisions arrive after all. The first in the log counts, whoever wrote it."""
    before = await rig.equal()
    async with rig.database() as connection:
        current = await definitions.version(connection)
        assert current is not None
        old = await connection.fetchval("SELECT max(version) FROM control.rules")
        stricter = msgspec.structs.replace(current, intake=msgspec.structs.replace(current.intake, too_old_days=2))
        new = (await install_version(connection, stricter)).version
    other = await rig.second("ingest", PERENNIAL_INGEST_RULES_VERSION=str(new))
    url = other.env["URL"]
    frozen = await rig.arm("ingest", "ingest.before_send:40:stop", PERENNIAL_INGEST_RULES_VERSION=str(old))
    load = asyncio.create_task(Traffic(3003, users=120).run(rig, 18, rate=250))
    rig.stopped(frozen)
    try:
        await everything_owned(rig, "ingest", url)
        await asyncio.sleep(1)
        rig.cont(frozen)
        await everything_owned(rig, "ingest", url, rig.status["ingest"])
    finally:
        await load
    async with rig.database() as connection:
        await definitions.rollback(connection, old)
    counts = await rig.equal()
    assert counts["decided_again"] > before["decided_again"], counts
    assert counts["decided_otherwise"] > before["decided_otherwise"], "no record was decided otherwise: nothing was shown"
    await rig.restart("ingest")
