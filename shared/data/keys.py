"""Whether a key opens a door: admin keys, checked by their SHA-256."""

from __future__ import annotations

import hashlib

from fastapi import Request

from shared.data.db import Pool, is_moment
from shared.process.clock import monotonic
from shared.process.http import ApiError

_FRESH_SECONDS = 2.0


def key_hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class AdminKeys:
    """Admin keys of the installation, read again every 2 s; a revoked one is refused from then on."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._hashes: frozenset[str] = frozenset()
        self._read_at = -_FRESH_SECONDS

    async def require(self, request: Request) -> None:
        """FastAPI dependency: 401 unless `Authorization: Bearer <admin key>` holds a valid key."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise ApiError(401, "unauthorised", "send `Authorization: Bearer <admin key>`; see `perennial keys`")
        await self._refresh()
        if key_hash(key.strip()) not in self._hashes:
            raise ApiError(401, "unauthorised", "this admin key is not known, or was revoked; see `perennial keys`")

    async def _refresh(self) -> None:
        if monotonic() - self._read_at < _FRESH_SECONDS:
            return
        try:
            rows = await self._pool.fetch("SELECT sha256 FROM control.key WHERE kind = 'admin' AND revoked_at IS NULL")
        except Exception as error:
            if not is_moment(error):
                raise
            return
        self._hashes = frozenset(row["sha256"] for row in rows)
        self._read_at = monotonic()
