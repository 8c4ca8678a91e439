"""Which database tests run on: one embedded Postgres for the whole run, a fresh migrated database for each test.

The schema is migrated once, into a template; a test's database is a copy of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from services.local import migrate
from services.local.postgres import EmbeddedPostgres
from shared.contracts.identifiers import fresh_id
from shared.data.db import Pool, connect_pool
from tests.support.brokers import Loop

TEMPLATE = "template_perennial"


@pytest.fixture(scope="session")
def postgres_server(server_home: Path) -> Iterator[EmbeddedPostgres]:
    """The server itself, for tests that stop it or look at its settings. Nothing survives a crash of the machine."""
    home = server_home / "postgres"
    home.mkdir()
    loop = Loop()
    server = EmbeddedPostgres(home, TEMPLATE, {"fsync": "off", "shared_buffers": "128MB"})
    try:
        loop.run(migrate.upgrade(loop.run(server.start())))
        yield server
    finally:
        loop.run(server.stop())
        loop.close()
        server.destroy()


@pytest.fixture
async def postgres(postgres_server: EmbeddedPostgres) -> AsyncIterator[str]:
    """DSN of a fresh database with the current schema and no rows."""
    name = fresh_id("t_")
    admin = await asyncpg.connect(postgres_server.dsn("postgres"))
    try:
        await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{TEMPLATE}"')
        yield postgres_server.dsn(name)
        await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await admin.close()


@pytest.fixture
async def database(postgres: str) -> AsyncIterator[Pool]:
    """A pool, as the services open it, on a fresh database."""
    pool = await connect_pool(postgres)
    yield pool
    await pool.close()
