"""A log that is not the one that was read: going on would resume in the middle of nowhere, so nothing goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.local import topics
from services.local.apache import missing_tools
from shared.contracts.topics import Names
from tests.support.installation import Rig, eventually, installed
from tests.support.traffic import Traffic

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.kafka]


@pytest_asyncio.fixture
async def doomed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """An installation on Apache Kafka that the test destroys."""
    problem = missing_tools()
    if problem is not None:
        pytest.skip(f"NOT TESTED ON APACHE KAFKA: {problem}")
    async with installed(tmp_path_factory.mktemp("doomed"), kafka="apache") as one:
        yield one


@pytest.mark.parametrize(("topic", "service"), [("app.events.raw.v1", "ingest"), ("app.events.v1", "segmenter")])
async def test_a_topic_that_was_made_anew_stops_its_reader(doomed: Rig, topic: str, service: str) -> None:
    """It says what happened and ends with the code of a refusal; it does so again when it is started again."""
    rig = doomed
    await Traffic(4001, users=50).run(rig, 2)
    await rig.equal()
    if service == "segmenter":
        await rig.without("ingest")
    await rig.without(service)
    async with topics.admin(rig.status["kafka"]) as admin:
        await admin.delete_topics([topic])
        await asyncio.sleep(1)
    await topics.ensure_topics(rig.status["kafka"], Names(""), rig.status["shards"])
    before = len(rig.said)
    await rig.back(service)

    async def refused() -> str:
        told = [line for line in rig.said[before:] if f"{service} ended (exit 3)" in line]
        return "" if len(told) >= 2 else f"{rig.said[before:]}"

    await eventually(refused, 40)
    assert "re-created" in rig.log(service)
