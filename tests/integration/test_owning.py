"""That no owner begins on an installation that is not the one it was told of."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from shared.contracts.topics import Topic
from shared.data.db import Pool
from shared.kafka.owning import opened_database, require_partitions
from shared.process.clock import Clock
from shared.process.errors import Fatal
from shared.process.settings import Installation
from tests.support.spine import SHARDS, Site


def _env(postgres: str, site: Site | None = None, shards: int = SHARDS) -> Installation:
    return Installation(
        kafka=site.kafka if site else "", postgres=postgres, prefix=site.names.prefix if site else "", shards=shards
    )


async def test_another_number_of_shards_is_refused(site: Site, postgres: str) -> None:
    async with AsyncExitStack() as stack:
        assert await opened_database(stack, _env(postgres), Clock(), size=1, service="test")
        with pytest.raises(Fatal, match=f"made with {SHARDS} shards, PERENNIAL_SHARDS says {SHARDS + 1}"):
            await opened_database(stack, _env(postgres, shards=SHARDS + 1), Clock(), size=1, service="test")


async def test_a_database_without_an_installation_is_refused(database: Pool, postgres: str) -> None:
    async with AsyncExitStack() as stack:
        with pytest.raises(Fatal, match="perennial migrate"):
            await opened_database(stack, _env(postgres), Clock(), size=1, service="test")


async def test_topics_have_a_partition_per_shard_or_just_one(site: Site, postgres: str) -> None:
    await require_partitions(site.log, _env(postgres, site), Topic.RAW, Topic.FEED, Topic.CONTEXT)
    with pytest.raises(Fatal, match=f"{Topic.FEED.value} has {SHARDS} partitions, {SHARDS + 1} are needed"):
        await require_partitions(site.log, _env(postgres, site, SHARDS + 1), Topic.CONTEXT, Topic.FEED)
