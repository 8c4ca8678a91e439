"""What others may ask of users: one user, counts, cohorts, rates."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import Depends, FastAPI, Query

from services.segmenter import queries
from shared.data.db import Pool
from shared.data.keys import AdminKeys
from shared.gazetteer import Gazetteer
from shared.process.http import ApiError, Health, service_app


def make_app(pool: Pool, gazetteer: Gazetteer, shards: int, health: Health) -> FastAPI:
    app = service_app("segmenter", health, version="1")
    admin = [Depends(AdminKeys(pool).require)]

    @app.get("/v1/users/{user_id}", dependencies=admin, tags=["users"])
    async def user(user_id: str) -> dict[str, Any]:
        """Where a user stands."""
        found = await queries.user(pool, gazetteer, shards, user_id)
        if found is None:
            raise ApiError(404, "unknown_user", f"no event of user {user_id!r} has been applied")
        return found

    @app.get("/v1/users/{user_id}/timeline", dependencies=admin, tags=["users"])
    async def timeline(
        user_id: str, after: int = Query(0, ge=0, alias="cursor"), limit: int = Query(100, ge=1, le=1000)
    ) -> dict[str, Any]:
        """Every change of a user in order, each with its cause and the raw record it goes back to."""
        items = await queries.timeline(pool, shards, user_id, after, limit)
        return {"items": items, "next": str(items[-1]["seq"]) if len(items) == limit else None}

    @app.get("/v1/tallies", dependencies=admin, tags=["counts"])
    async def tallies() -> dict[str, Any]:
        """Users by stage, activity and segment."""
        return await queries.tallies(pool)

    @app.get("/v1/rates", dependencies=admin, tags=["counts"])
    async def rates() -> dict[str, Any]:
        """Activation, repeat and loyal customer rates."""
        return await queries.rates(pool)

    @app.get("/v1/cohorts", dependencies=admin, tags=["counts"])
    async def cohorts(
        relation: Literal["", "default", "searched", "added"] = "",
        state: str = "",
        city: str = "",
        limit: int = Query(100, ge=1, le=10_000),
    ) -> dict[str, Any]:
        """Users by city and relation, largest first."""
        return {"items": await queries.cohorts(pool, gazetteer, relation, state, city, limit), "next": None}

    return app
