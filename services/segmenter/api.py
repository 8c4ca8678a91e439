"""What others may ask of users: one user, counts, cohorts, rates, and how these came to be by day or month."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query

from services.segmenter import queries, reports
from services.segmenter.periods import Periods, spanned
from shared.data.db import Pool
from shared.data.keys import AdminKeys
from shared.gazetteer import Gazetteer
from shared.process.clock import Clock
from shared.process.http import ApiError, Health, service_app

_From = Annotated[str, Query(alias="from", description="first day (2026-01-31) or month (2026-01)")]
_To = Annotated[str, Query(alias="to", description="last day or month, included; default: today")]
_By = Annotated[str, Query(description="day or month")]


def make_app(pool: Pool, gazetteer: Gazetteer, shards: int, clock: Clock, health: Health) -> FastAPI:
    app = service_app("segmenter", health, version="1")

    def within(first: str, last: str, by: str) -> Periods:
        try:
            return spanned(first, last, by, clock.now_ms())
        except ValueError as error:
            raise ApiError(400, "bad_period", str(error)) from None

    admin = [Depends(AdminKeys(pool).require)]

    @app.get("/v1/users/{user_id}", dependencies=admin, tags=["users"])
    async def user(user_id: str) -> dict[str, Any]:
        """Where a user stands; 410 for an id that has become part of another user, with that one's id."""
        found = await queries.user(pool, gazetteer, shards, user_id)
        if found is None:
            raise ApiError(404, "unknown_user", f"no event of user {user_id!r} has been applied")
        if "merged_into" in found:
            to = found["merged_into"]
            raise ApiError(410, "user_merged", f"{user_id!r} is part of user {to!r}", {"merged_into": to})
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
    async def rates(first: _From = "", last: _To = "", by: _By = "") -> dict[str, Any]:
        """Activation, repeat and loyal customer rates: those of now, or by period (with `from`, `to` or `by`).

        activation = customers / users, repeat = repeat / customers, loyal = loyal / repeat, each × 100. By period
        (UTC), users and customers of each kind are those at its end, and `new_…` those who came to be that within it,
        less those who ceased to be; orders and revenue are its own. An order belongs to the day it was placed: where
        it is refunded or cancelled later, that day's counts become smaller, and whoever was a customer by it never was
        one. An order of zero is an order.
        """
        if not (first or last or by):
            return await queries.rates(pool)
        return await reports.rates(pool, within(first, last, by))

    @app.get("/v1/growth", dependencies=admin, tags=["counts"])
    async def growth(first: _From = "", last: _To = "", by: _By = "") -> dict[str, Any]:
        """Who was active in each period, by whether they were in the one before.

        Active is who did something in it that counts as activity: new (for the first time), retained (active in the
        period before, too) or resurrected (only in an earlier one), so active = new + retained + resurrected. Churned
        were active in the period before and not in this one: active = active before + new + resurrected - churned.
        In a period that is not over, churned are those not yet seen.
        """
        return await reports.growth(pool, within(first, last, by))

    @app.get("/v1/activity", dependencies=admin, tags=["counts"])
    async def activity(first: _From = "", last: _To = "") -> dict[str, Any]:
        """Day by day: users active on it (`dau`), within the 7 and the 30 days that end with it (`wau`, `mau`),
        stickiness = dau / mau × 100, sessions begun, screens seen, and screens per session (`session_depth`)."""
        return await reports.activity(pool, within(first, last, "day"))

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
