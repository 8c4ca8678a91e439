"""Erasing users by HTTP: asked for, readmitted, and how far it has come."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Response

from services.ingest.domain.intake import RequestKind
from services.ingest.privacy import requests
from services.ingest.privacy.requests import Send
from shared.contracts.identifiers import MAX_ID_CHARS
from shared.data.db import Pool, is_moment
from shared.data.keys import AdminKeys
from shared.kafka.sender import SendFailed
from shared.process.clock import Clock
from shared.process.http import ApiError

User = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS, description="the user's id, as the app posts it")]


def privacy(pool: Pool, send: Send, clock: Clock, shards: int) -> APIRouter:
    """The routes; every one needs an admin key with the scope `privacy`."""
    router = APIRouter(tags=["privacy"], dependencies=[Depends(AdminKeys(pool).allow("privacy"))])

    async def ask(kind: RequestKind, user_id: str, response: Response) -> dict[str, Any]:
        if wrong := requests.check(user_id):
            raise ApiError(400, "invalid_user_id", wrong)
        try:
            async with pool.acquire() as connection:
                erasure_id = await requests.ask(connection, send, kind, user_id, shards, clock.now_ms())
                found = await requests.told(connection, erasure_id)
        except Exception as error:
            if not (isinstance(error, SendFailed) or is_moment(error)):
                raise
            message = "the database or the broker does not answer; ask again"
            raise ApiError(503, "not_ready", message, headers={"Retry-After": "2"}) from error
        assert found is not None
        response.headers["location"] = f"/v1/erasures/{erasure_id}"
        return found

    @router.delete("/v1/users/{user_id:path}", status_code=202)
    async def erase(user_id: User, response: Response) -> dict[str, Any]:
        """Have everything that is kept of a user erased, and take in nothing more of them.

        202 with a receipt once the request is in the log; `GET /v1/erasures/{erasure_id}` tells when all of it is done.
        May be asked again, and for users nobody knows.
        """
        return await ask("erase", user_id, response)

    @router.delete("/v1/suppressed/{user_id:path}", status_code=202)
    async def readmit(user_id: User, response: Response) -> dict[str, Any]:
        """Take in events of an erased user again, as of somebody new."""
        return await ask("readmit", user_id, response)

    @router.get("/v1/erasures/{erasure_id}")
    async def progress(erasure_id: str) -> dict[str, Any]:
        """How far a request has come: `asked`, `applied` (by the segmenter), `erased` (by the notifier as well), `done`
        (the id is overwritten wherever it was kept for that)."""
        try:
            async with pool.acquire() as connection:
                found = await requests.told(connection, erasure_id)
        except Exception as error:
            if is_moment(error):
                message = "the database does not answer; ask again"
                raise ApiError(503, "not_ready", message, headers={"Retry-After": "2"}) from error
            raise
        if found is None:
            raise ApiError(404, "unknown_erasure", f"there is no request {erasure_id!r}")
        return found

    return router
