"""How a service reaches Postgres, and which of its failures are only bad moments."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from shared.process.errors import Transient

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:
    Connection = Pool = object

_MOMENTS = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.QueryCanceledError,
    ConnectionError,
    TimeoutError,
    OSError,
)


def is_moment(error: BaseException) -> bool:
    """Whether the same statement may succeed later on another connection."""
    return isinstance(error, _MOMENTS)


async def _keep(_: Connection) -> None:
    """Nothing here changes a session, so nothing has to be set back when it returns to the pool."""


async def connect_pool(dsn: str, size: int = 6, *, at_once: bool = True, service: str = "") -> Pool:
    """A pool whose sessions cannot hold a lock for long: a frozen owner must not block a takeover. The server knows
    them as `perennial`, and by the service's name where it is given. `Transient` while the server is away; with
    `at_once=False` it connects when it is first used."""
    try:
        pool = await asyncpg.create_pool(
            dsn,
            min_size=int(at_once),
            max_size=size,
            timeout=10,
            command_timeout=60,
            reset=_keep,
            server_settings={
                "idle_in_transaction_session_timeout": "3000",
                "statement_timeout": "60000",
                "lock_timeout": "10000",
                "application_name": f"perennial {service}".strip(),
                "jit": "off",
            },
        )
    except _MOMENTS as error:
        raise Transient(f"postgres: {type(error).__name__}: {error}") from error
    assert pool is not None
    return pool


@asynccontextmanager
async def transaction(pool: Pool, isolation: str = "read_committed") -> AsyncIterator[Connection]:
    """One transaction; a bad moment of the database, the COMMIT's lost answer included, is `Transient`.

    After `Transient` it is not known whether the transaction was committed: read again under lock.
    """
    try:
        async with pool.acquire() as connection:
            async with connection.transaction(isolation=isolation):  # type: ignore[arg-type]
                yield connection
    except _MOMENTS as error:
        raise Transient(f"postgres: {type(error).__name__}: {error}") from error
