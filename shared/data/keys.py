"""Whether a key opens a door: keys are known by their SHA-256, and admin keys by what they allow."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, get_args

from fastapi import Request

from shared.data.db import Pool, is_moment
from shared.process.clock import monotonic
from shared.process.http import ApiError

Scope = Literal["read", "write", "privacy"]
"""What an admin key allows: to look; to change and to set going; to export and erase what is kept of a person."""
SCOPES: tuple[Scope, ...] = get_args(Scope)

_FRESH_SECONDS = 2.0
_READ = "SELECT sha256, scopes FROM control.key_in_force WHERE kind = 'admin'"


def key_hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


class AdminKeys:
    """Admin keys of the installation, read again every 2 s; a revoked one is refused from then on."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._scopes: Mapping[str, frozenset[str]] = {}
        self._read_at = -_FRESH_SECONDS
        self._known = False

    async def require(self, request: Request) -> None:
        """FastAPI dependency: 401 unless `Authorization: Bearer <admin key>` holds a valid key, 403 unless that key
        allows what is asked: `read` to GET, `write` for everything else."""
        await self._allowed(request, "read" if request.method in ("GET", "HEAD") else "write")

    def allow(self, scope: Scope) -> Callable[[Request], Awaitable[None]]:
        """The dependency of a route whose method does not tell what it needs."""

        async def check(request: Request) -> None:
            await self._allowed(request, scope)

        return check

    async def _allowed(self, request: Request, scope: Scope) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise ApiError(401, "unauthorised", "send `Authorization: Bearer <admin key>`; see `perennial keys`")
        await self._refresh()
        if not self._known:
            message = "the database does not answer, and admin keys were never read; try again"
            raise ApiError(503, "not_ready", message, headers={"Retry-After": "2"})
        scopes = self._scopes.get(key_hash(key.strip()))
        if scopes is None:
            raise ApiError(401, "unauthorised", "this admin key is not known, or was revoked; see `perennial keys`")
        if scope not in scopes:
            has = ", ".join(s for s in SCOPES if s in scopes) or "nothing"
            message = f"this needs an admin key with the scope {scope}; this one allows {has}"
            raise ApiError(403, "forbidden", message, {"needs": scope, "has": sorted(scopes)})

    async def _refresh(self) -> None:
        if monotonic() - self._read_at < _FRESH_SECONDS:
            return
        try:
            rows = await self._pool.fetch(_READ)
        except Exception as error:
            if not is_moment(error):
                raise
            return
        self._scopes = {row["sha256"]: frozenset(row["scopes"]) for row in rows}
        self._read_at, self._known = monotonic(), True
