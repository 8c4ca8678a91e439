"""How the write keys come from Postgres, and what they were used for goes there.

The last good copy is kept on disk: Postgres may be away, also while the gateway starts.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import asyncpg
import msgspec

from services.ingest.gateway.keys import KeyBook, KeyFacts
from services.ingest.gateway.settings import GatewaySettings
from shared.data.db import Pool, connect_pool, is_moment
from shared.process.clock import monotonic
from shared.process.errors import Transient
from shared.process.http import Health
from shared.process.metrics import GATEWAY_THROTTLED

log = logging.getLogger("perennial.gateway.keys")

_READ = "SELECT sha256, source, events_per_second FROM control.key_in_force WHERE kind = 'write'"
_MOSTLY_REJECTED = """
SELECT source FROM control.source_verdict WHERE minute > extract(epoch FROM now())::bigint / 60 - 5
GROUP BY source HAVING sum(rejected) >= $1::int AND sum(rejected) > sum(accepted)
"""
"""Sources most of whose events of the last five minutes were rejected, and not only a few."""
_USE = """
INSERT INTO control.key_use (sha256, events, refused, last_used_at)
SELECT u.sha256, u.events, u.refused, now()
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS u (sha256, events, refused)
JOIN control.key USING (sha256)
ON CONFLICT (sha256) DO UPDATE SET events = key_use.events + excluded.events,
    refused = key_use.refused + excluded.refused, last_used_at = excluded.last_used_at
"""
_USE_SECONDS = 10.0
_decode_kept = msgspec.json.Decoder(dict[str, str | KeyFacts]).decode


class KeysFeed:
    """Feeds a book from Postgres every `keys_seconds`, and from the kept copy until Postgres has answered."""

    def __init__(self, book: KeyBook, dsn: str, kept: Path, settings: GatewaySettings, health: Health) -> None:
        self._book, self._dsn, self._kept, self._settings, self._health = book, dsn, kept, settings, health
        self._pool: Pool | None = None
        self._away = False
        self._told_at = monotonic()

    def load_kept(self) -> None:
        """Take the copy on disk, if there is a readable one."""
        try:
            kept = _decode_kept(self._kept.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("the kept write keys cannot be read: %s", error)
            return
        # a copy may hold nothing but sources
        self._book.replace({sha: KeyFacts(one) if isinstance(one, str) else one for sha, one in kept.items()})

    async def run(self) -> None:
        seconds = self._settings.keys_seconds
        while True:
            self._health.beat("keys", 30 + 4 * seconds)
            await self.poll()
            await asyncio.sleep(seconds)

    async def poll(self) -> bool:
        """Read the keys once; False when Postgres is away, and the book stays as it was."""
        try:
            async with asyncio.timeout(20):
                if self._pool is None:
                    self._pool = await connect_pool(self._dsn, size=1)
                rows = await self._pool.fetch(_READ)
                least = self._settings.throttle_rejects
                mostly_rejected = await self._pool.fetch(_MOSTLY_REJECTED, least) if least else []
                if monotonic() - self._told_at >= _USE_SECONDS:
                    await self.tell_use()
        except Exception as error:
            if not (is_moment(error) or isinstance(error, Transient | asyncpg.PostgresError)):
                raise
            if not self._away:
                log.warning("write keys: postgres is away, the last known keys stay in force: %s", error)
            self._away = True
            return False
        if self._away:
            log.info("write keys: postgres is back")
        self._away = False
        facts = {row["sha256"]: KeyFacts(row["source"], row["events_per_second"]) for row in rows}
        if self._book.replace(facts):
            self._keep(facts)
            log.info("write keys in force: %d", len(facts))
        self._throttle([row["source"] for row in mostly_rejected])
        return True

    def _throttle(self, sources: list[str]) -> None:
        self._book.throttle(sources, self._settings.throttled_events_per_second)
        GATEWAY_THROTTLED.set(len(sources))

    async def tell_use(self) -> None:
        """Add to Postgres what the keys were used for since; what cannot be told is not told again."""
        assert self._pool is not None
        self._told_at = monotonic()
        used = self._book.used()
        if used:
            events, refused = zip(*used.values(), strict=True)
            await self._pool.execute(_USE, list(used), list(events), list(refused))

    async def stop(self) -> None:
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(2):
                await self.tell_use()
        except Exception as error:
            if not (is_moment(error) or isinstance(error, asyncpg.PostgresError)):
                raise
        finally:
            self._pool.terminate()

    def _keep(self, facts: Mapping[str, KeyFacts]) -> None:
        try:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._kept.with_suffix(".tmp")
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(facts))
            temporary.replace(self._kept)
        except OSError as error:
            log.warning("the write keys cannot be kept on disk: %s", error)
