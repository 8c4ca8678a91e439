"""Whose write key this is. Keys are rows of `control.key`; here they are only known by their hash.

The last good copy is kept on disk: Postgres may be away, also while the gateway starts.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import asyncpg
import msgspec

from shared.data.db import Pool, connect_pool, is_moment
from shared.process.errors import Transient
from shared.process.http import Health

log = logging.getLogger("perennial.gateway.keys")

_READ = "SELECT sha256, source FROM control.key WHERE kind = 'write' AND revoked_at IS NULL"
_REMEMBER = 1024
_decode_kept = msgspec.json.Decoder(dict[str, str]).decode


class KeyBook:
    """Which source a write key belongs to. `known` is False until the keys were read from anywhere:
    until then nobody may be told that theirs is wrong."""

    def __init__(self, sources: Mapping[str, str] | None = None) -> None:
        self.known = sources is not None
        self._sources: dict[str, str] = dict(sources or {})
        self._recent: dict[bytes, str] = {}

    @classmethod
    def of(cls, **keys: str) -> KeyBook:
        """A book of plain keys by source name."""
        return cls({hashlib.sha256(key.encode()).hexdigest(): source for source, key in keys.items()})

    def replace(self, sources: Mapping[str, str]) -> bool:
        """The keys now in force, source by sha256; whether that is news."""
        news = not self.known or self._sources != sources
        if news:
            self._sources, self.known, self._recent = dict(sources), True, {}
        return news

    def source_of(self, key: str) -> str | None:
        return self._sources.get(hashlib.sha256(key.encode("utf-8", "replace")).hexdigest())

    def source_by_header(self, authorization: bytes) -> str | None:
        """The source named by an Authorization header: `Basic base64(key:)` or `Bearer key`."""
        source = self._recent.get(authorization)
        if source is None:
            key = key_in_header(authorization)
            source = self.source_of(key) if key else None
            if source is not None and len(self._recent) < _REMEMBER:
                self._recent[authorization] = source
        return source


def key_in_header(authorization: bytes) -> str:
    """The write key in an Authorization header; empty where there is none."""
    scheme, _, rest = authorization.strip().partition(b" ")
    rest = rest.strip()
    match scheme.lower():
        case b"basic":
            try:
                plain = base64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True)
            except (binascii.Error, ValueError):
                return ""
            return plain.partition(b":")[0].decode("utf-8", "replace")
        case b"bearer":
            return rest.decode("utf-8", "replace")
    return ""


class PostgresKeys:
    """Feeds a book from Postgres every `seconds`, and from the kept copy until Postgres has answered."""

    def __init__(self, book: KeyBook, dsn: str, kept: Path, seconds: float, health: Health) -> None:
        self._book, self._dsn, self._kept, self._seconds, self._health = (
            book,
            dsn,
            kept,
            seconds,
            health,
        )
        self._pool: Pool | None = None
        self._away = False

    def load_kept(self) -> None:
        """Take the copy on disk, if there is a readable one."""
        try:
            self._book.replace(_decode_kept(self._kept.read_bytes()))
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("the kept write keys cannot be read: %s", error)

    async def run(self) -> None:
        while True:
            self._health.beat("keys", 30 + 4 * self._seconds)
            await self.poll()
            await asyncio.sleep(self._seconds)

    async def poll(self) -> bool:
        """Read the keys once; False when Postgres is away, and the book stays as it was."""
        try:
            async with asyncio.timeout(20):
                if self._pool is None:
                    self._pool = await connect_pool(self._dsn, size=1)
                rows = await self._pool.fetch(_READ)
        except Exception as error:
            if not (is_moment(error) or isinstance(error, Transient | asyncpg.PostgresError)):
                raise
            if not self._away:
                log.warning(
                    "write keys: postgres is away, the last known keys stay in force: %s",
                    error,
                )
            self._away = True
            return False
        if self._away:
            log.info("write keys: postgres is back")
        self._away = False
        sources = {row["sha256"]: row["source"] for row in rows}
        if self._book.replace(sources):
            self._keep(sources)
            log.info("write keys in force: %d", len(sources))
        return True

    async def stop(self) -> None:
        if self._pool is not None:
            self._pool.terminate()

    def _keep(self, sources: Mapping[str, str]) -> None:
        try:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._kept.with_suffix(".tmp")
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(sources))
            temporary.replace(self._kept)
        except OSError as error:
            log.warning("the write keys cannot be kept on disk: %s", error)
