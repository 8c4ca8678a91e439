"""What a user may ask of what is kept of them, by HTTP: all of it, and whether anything is taken in."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from services.segmenter import erasing, exporting
from services.segmenter.exporting import ReadRaw
from shared.data.db import Pool
from shared.data.keys import AdminKeys
from shared.gazetteer import Gazetteer


def privacy(pool: Pool, gazetteer: Gazetteer, shards: int, read_raw: ReadRaw) -> APIRouter:
    """The routes; every one needs an admin key with the scope `privacy`."""
    router = APIRouter(tags=["privacy"], dependencies=[Depends(AdminKeys(pool).allow("privacy"))])

    @router.get("/v1/users/{user_id:path}/export")
    async def export(user_id: str) -> dict[str, Any]:
        """Everything the segmenter keeps of a user; what the notifier keeps of them, it exports under the same path.
        `known` is false where that is nothing."""
        async with pool.acquire() as connection:
            return await exporting.export(connection, read_raw, gazetteer, shards, user_id)

    @router.get("/v1/suppressed")
    async def suppressed() -> dict[str, Any]:
        """How many erased users nothing is taken in of; who they are, nobody can tell."""
        return {"users": await pool.fetchval("SELECT count(*) FROM segmenter.suppressed")}

    @router.get("/v1/suppressed/{user_id:path}")
    async def is_suppressed(user_id: str) -> dict[str, Any]:
        """Whether nothing is taken in of this one."""
        async with pool.acquire() as connection:
            found = await erasing.is_suppressed(connection, shards, user_id)
        return {"user_id": user_id, "suppressed": found}

    return router
