"""One connection to an installation's database, for commands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from services.local.program import LocalError


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """One connection; LocalError with a remedy when the database does not answer."""
    try:
        connection = await asyncpg.connect(dsn, timeout=10)
    except (OSError, asyncpg.PostgresError, ValueError, TimeoutError) as error:
        raise LocalError(
            f"Postgres does not answer at {dsn} ({error}); is it running, and is --postgres right?"
        ) from error
    try:
        yield connection
    finally:
        await connection.close()
