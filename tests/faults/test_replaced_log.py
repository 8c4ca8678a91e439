"""A log that is not the one that was read: going on would resume in the middle of nowhere, so nothing goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest
import pytest_asyncio

from services.local import topics
from shared.contracts.topics import Names
from tests.support.installation import Rig, eventually, installed
from tests.support.traffic import Traffic

pytestmark = pytest.mark.asyncio(loop_scope="function")


@pytest_asyncio.fixture
async def doomed(broker: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """An installation that the test destroys."""
    async with installed(tmp_path_factory.mktemp("doomed"), kafka=broker) as one:
        yield one


async def test_a_topic_that_was_made_anew_stops_its_reader(doomed: Rig) -> None:
    """It says what happened and ends with the code of a refusal; it does so again when it is started again."""
    rig = doomed
    await Traffic(4001, users=50).run(rig, 2)
    await rig.equal()
    for topic, service in (("app.events.raw.v1", "ingest"), ("app.events.v1", "segmenter")):
        # the former one is ended, too: it would go on writing what the next one reads
        await rig.without("ingest")
        await rig.without(service)
        async with topics.admin(rig.status["kafka"]) as admin:
            await admin.delete_topics([topic])
            await asyncio.sleep(1)
        await topics.ensure_topics(rig.status["kafka"], Names(""), rig.status["shards"])
        before = len(rig.said)
        await rig.back(service)
        await eventually(partial(_refused, rig, service, before), 40)
        assert "re-created" in rig.log(service)


async def _refused(rig: Rig, service: str, before: int) -> str:
    told = [line for line in rig.said[before:] if f"{service} ended (exit 3)" in line]
    return "" if len(told) >= 2 else f"{rig.said[before:]}"
