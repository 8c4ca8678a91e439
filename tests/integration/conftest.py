"""Installations of a test's own, on the embedded broker or on each kind in turn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.data.db import Pool
from tests.support.brokers import MakeTopics
from tests.support.spine import SHARDS, Site, opened_site


@pytest.fixture
async def site(embedded_kafka: str, database: Pool, topics_of: MakeTopics, tmp_path: Path) -> AsyncIterator[Site]:
    """An installation on the embedded broker."""
    async with opened_site(embedded_kafka, await topics_of(embedded_kafka, SHARDS), database, tmp_path) as found:
        yield found


@pytest.fixture
async def any_site(kafka: str, database: Pool, topics_of: MakeTopics, tmp_path: Path) -> AsyncIterator[Site]:
    """An installation; a test that asks for it runs once on each kind of broker."""
    async with opened_site(kafka, await topics_of(kafka, SHARDS), database, tmp_path) as found:
        yield found


@pytest.fixture
async def apache_site(apache_kafka: str, database: Pool, topics_of: MakeTopics, tmp_path: Path) -> AsyncIterator[Site]:
    """An installation on Apache Kafka."""
    async with opened_site(apache_kafka, await topics_of(apache_kafka, SHARDS), database, tmp_path) as found:
        yield found
