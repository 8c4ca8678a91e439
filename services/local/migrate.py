"""Bringing the database to this version of the code, and recording which log the installation reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from services.local.program import LocalError
from shared.contracts.identifiers import fresh_id
from shared.contracts.topics import Topic
from shared.data.db import Connection
from shared.data.ledger import MERGE_SENT
from shared.data.shard_owner import MERGES_READ

if TYPE_CHECKING:
    from sqlalchemy import Connection as SqlConnection

MIGRATIONS = Path(__file__).resolve().parents[2] / "deploy" / "migrations"
LOCK = 0x7065_7265_6E6E
"""Advisory lock that two migrations at once contend for."""


def alembic_address(dsn: str) -> str:
    """The same database as SQLAlchemy names it; plain `postgresql://` would mean another driver."""
    for scheme in ("postgresql://", "postgres://"):
        if dsn.startswith(scheme):
            return "postgresql+asyncpg://" + dsn.removeprefix(scheme)
    raise LocalError(f"a Postgres address begins with postgresql://, this one does not: {dsn}")


async def upgrade(dsn: str) -> None:
    """Runs the missing migrations. Concurrent calls wait for each other."""
    # Loaded here: half a second that no other command should pay.
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    engine = create_async_engine(alembic_address(dsn), poolclass=NullPool)
    try:
        async with engine.connect() as holder:
            await holder.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
            await holder.commit()
            async with engine.connect() as connection:
                await connection.run_sync(_upgrade)
                await connection.commit()
    except (OSError, SQLAlchemyError, asyncpg.PostgresError) as error:
        raise LocalError(f"the database could not be migrated: {error}") from error
    finally:
        await engine.dispose()


def _upgrade(connection: SqlConnection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(str(MIGRATIONS / "alembic.ini"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


_TELL_AGAIN = """
UPDATE spine.shard_owner AS o SET relayed = least(o.relayed, unread.seq - 1)
  FROM (
    SELECT told.shard, min(told.seq) AS seq
      FROM segmenter.outbox AS told
      LEFT JOIN spine.shard_position AS heard
        ON heard.service = $1 AND heard.shard = (told.payload->>'shard')::int
       AND heard.source LIKE '%/' || told.shard
     WHERE told.kind = $2 AND told.payload->>'shard' IS NOT NULL
       AND (heard.shard IS NULL OR (told.gen, told.seq) > (heard.last_gen, heard.last_src))
     GROUP BY told.shard
  ) AS unread
 WHERE o.service = 'segmenter' AND o.shard = unread.shard
"""


@dataclass(frozen=True)
class LogChange:
    """What `adopt_log` found: `first` installation, or the log was `replaced` by another one."""

    log_id: str
    first: bool
    replaced: bool


async def adopt_log(connection: Connection, shards: int, log_id: str) -> LogChange:
    """Records the log the installation reads from now on; the services must not run.

    `log_id` is what the broker calls its cluster. Where the log was replaced, every feed row the notifier
    has not read, and all that was told to a shard which has not read it, counts as not relayed: the new log does not
    have it. Refuses another number of shards.
    """
    async with connection.transaction():
        row = await connection.fetchrow("SELECT shards, log_id FROM control.installation FOR UPDATE")
        if row is None:
            await connection.execute(
                "INSERT INTO control.installation (shards, log_id, salt) VALUES ($1, $2, $3)",
                shards,
                log_id,
                fresh_id(),
            )
            return LogChange(log_id, first=True, replaced=False)
        if row["shards"] != shards:
            raise LocalError(
                f"this installation was made with {row['shards']} shards and PERENNIAL_SHARDS says {shards}: "
                "the number never changes; set it back, or use another database"
            )
        if row["log_id"] == log_id:
            return LogChange(log_id, first=False, replaced=False)
        await connection.execute("UPDATE control.installation SET log_id = $1", log_id)
        await connection.execute(
            """
            UPDATE spine.shard_owner AS o
               SET relayed = coalesce(
                   (SELECT CASE WHEN p.last_gen = o.gen THEN greatest(p.last_src, 0) ELSE 0 END
                      FROM spine.shard_position AS p
                     WHERE p.service = 'notifier' AND p.shard = o.shard AND right(p.source, length($1)) = $1), 0)
             WHERE o.service = 'segmenter'
            """,
            Topic.FEED.value,
        )
        await connection.execute(_TELL_AGAIN, MERGES_READ, MERGE_SENT)
        return LogChange(log_id, first=False, replaced=True)
