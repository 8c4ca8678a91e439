"""What others may tell and ask the notifier: context events, messages, campaigns, the kill switch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse

from services.notifier import exporting, exposures, history, queries
from services.notifier.book import CampaignBook
from services.notifier.context.intake import ContextRecord, encode_context, split, trigger
from services.notifier.domain.campaign import Occurrence
from services.notifier.domain.frequency_cap import DAY_MS
from services.notifier.domain.plan import plan
from services.notifier.domain.recipient import decode_recipient
from shared.contracts.identifiers import shard_of
from shared.contracts.rules import ScheduleTrigger
from shared.data.db import Pool
from shared.data.keys import AdminKeys
from shared.gazetteer import Gazetteer
from shared.kafka.sender import Record, Sender, SendFailed
from shared.process.clock import Clock
from shared.process.http import ApiError, Health, service_app

MAX_CONTEXT_BYTES = 16_000_000
MAX_KEY_CHARS = 200


def make_app(
    *,
    pool: Pool,
    book: CampaignBook,
    gazetteer: Gazetteer,
    sender: Sender,
    context_topic: str,
    clock: Clock,
    shards: int,
    health: Health,
) -> FastAPI:
    app = service_app("notifier", health, version="1", max_body_size=MAX_CONTEXT_BYTES)
    keys = AdminKeys(pool)
    router = APIRouter(dependencies=[Depends(keys.require)])
    _context_routes(router, pool, gazetteer, sender, context_topic, clock)
    _campaign_routes(router, pool, book, clock, shards)
    _trigger_routes(router, book, gazetteer, sender, context_topic, clock)
    _kill_routes(router, pool, book)
    app.include_router(router)

    @app.get("/v1/users/{user_id:path}/export", dependencies=[Depends(keys.allow("privacy"))], tags=["privacy"])
    async def export(user_id: str) -> dict[str, Any]:
        """Everything the notifier keeps of a user; what the segmenter keeps of them, it exports under the same path."""
        async with pool.acquire() as connection:
            return await exporting.export(connection, shards, user_id)

    return app


def _context_routes(
    router: APIRouter, pool: Pool, gazetteer: Gazetteer, sender: Sender, topic: str, clock: Clock
) -> None:
    @router.post("/v1/context", status_code=202, tags=["context"])
    async def context(request: Request) -> JSONResponse:
        """An alert or a forecast in the contract's form (`"kind": "forecast", "items": […]`: up to 5,000 forecasts), or
        NWS GeoJSON (a feature or a whole feed) as it comes.

        202 once all of it is in the log; of several, those that could not be read are listed, and the others taken.
        """
        body = await _object(request)
        try:
            records, unreadable = split(body, gazetteer, clock.now_ms())
        except ValueError as error:
            raise ApiError(422, "invalid_context", str(error)) from error
        await _log(sender, topic, records)
        return JSONResponse(
            {
                "accepted": len(records),
                "ids": [r.id for r in records[:1000]],
                "unreadable": [{"id": u.id, "reason": u.reason} for u in unreadable],
            },
            202,
        )

    @router.get("/v1/context", tags=["context"])
    async def contexts(
        kind: Literal["", "nws", "alert", "forecast", "trigger"] = "",
        context_id: str = Query("", alias="id"),
        limit: int = Query(100, ge=1, le=10_000),
    ) -> dict[str, Any]:
        """Context events as they were judged, and the forecasts that are known, newest first; with `id`, that one."""
        return {"items": await queries.context_events(pool, kind, limit, context_id), "next": None}


def _campaign_routes(router: APIRouter, pool: Pool, book: CampaignBook, clock: Clock, shards: int) -> None:
    @router.get("/v1/messages", tags=["messages"])
    async def messages(
        user: str = "",
        campaign: str = "",
        state: str = "",
        cursor: str = "",
        limit: int = Query(100, ge=1, le=1000),
    ) -> dict[str, Any]:
        """Messages with what caused them, by message id."""
        items = await queries.messages(pool, shards, user, campaign, state, cursor, limit)
        return {"items": items, "next": items[-1]["message_id"] if len(items) == limit else None}

    @router.get("/v1/messages/{message_id}", tags=["messages"])
    async def message(message_id: str) -> dict[str, Any]:
        """One message with every gate and what caused it; its id is what the push and the tap carry."""
        found = await queries.message(pool, message_id)
        if found is None:
            raise ApiError(404, "unknown_message", f"there is no message {message_id!r}")
        return found

    @router.get("/v1/campaigns", tags=["campaigns"])
    async def campaigns() -> dict[str, Any]:
        """The campaigns in force."""
        return {"items": [msgspec.to_builtins(active.campaign) for active in book.all], "next": None}

    @router.get("/v1/campaigns/{campaign_id}", tags=["campaigns"])
    async def campaign(campaign_id: str) -> Any:
        return msgspec.to_builtins(_known(book, campaign_id).campaign)

    @router.get("/v1/campaigns/{campaign_id}/results", tags=["campaigns"])
    async def results(campaign_id: str) -> dict[str, Any]:
        """Messages by variant and state, and how many of them were opened; and what the campaign did (`lift`).

        Lift compares users treated with users held out, by the sessions they began within the campaign's window (an
        open is a session begun). Differences are null while there are too few users to say anything. Null altogether
        where nobody is held out.
        """
        known = _known(book, campaign_id).campaign
        lift = await exposures.compare(pool, known, clock.now_ms())
        return {"campaign": campaign_id, "items": await queries.results(pool, known.id), "lift": lift}

    @router.get("/v1/campaigns/{campaign_id}/runs", tags=["campaigns"])
    async def runs(campaign_id: str, limit: int = Query(100, ge=1, le=1000)) -> dict[str, Any]:
        """When the campaign was set going for an audience, newest first, and how far that has come."""
        return {"items": await queries.runs(pool, _known(book, campaign_id).campaign.id, limit), "next": None}

    @router.get("/v1/campaigns/{campaign_id}/explain", tags=["campaigns"])
    async def explain(campaign_id: str, user: str) -> dict[str, Any]:
        """Every gate with its values, if the campaign were set going for this user now and its delay were over; and
        what of it waits for them."""
        active = _known(book, campaign_id)
        body = await pool.fetchval(
            "SELECT body FROM notifier.recipient WHERE shard = $1 AND user_id = $2", shard_of(user, shards), user
        )
        if body is None:
            raise ApiError(404, "unknown_user", f"nothing is known here of user {user!r}")
        now, rules, key = clock.now_ms(), book.in_force, (shard_of(user, shards), user)
        past = await history.load(pool, [key], now - rules.history_days * DAY_MS) if rules.history_days else {}
        verdict = plan(
            active.campaign,
            decode_recipient(body),
            Occurrence("explain", now),
            now,
            book.salt,
            active.compiled,
            rules.consent_required,
            rules.limits,
            past.get(key, ()),
        )
        gates = [{"gate": c.gate, "passed": c.passed, "values": c.values} for c in verdict.explain]
        return {
            "campaign": campaign_id,
            "user_id": user,
            "verdict": type(verdict).__name__.lower(),
            "gates": gates,
            "pending": await queries.pending(pool, *key, campaign_id),
        }


def _trigger_routes(
    router: APIRouter, book: CampaignBook, gazetteer: Gazetteer, sender: Sender, topic: str, clock: Clock
) -> None:
    @router.post("/v1/campaigns/{campaign_id}/trigger", status_code=202, tags=["campaigns"])
    async def set_going(
        campaign_id: str, request: Request, idempotency_key: Annotated[str | None, Header()] = None
    ) -> dict[str, Any]:
        """Set a campaign with a schedule going now, for its audience everywhere or in `{"areas": […]}` (as an alert's).

        `Idempotency-Key` names this one time: the same key does nothing a second time. 202 once it is in the log.
        """
        if not isinstance(_known(book, campaign_id).campaign.trigger, ScheduleTrigger):
            message = (
                f"campaign {campaign_id!r} waits for something that happens; only one with a schedule can be triggered"
            )
            raise ApiError(409, "not_triggerable", message)
        if not _known(book, campaign_id).campaign.enabled:
            raise ApiError(409, "paused", f"campaign {campaign_id!r} is paused: `enabled: false` in the pack")
        if not idempotency_key or len(idempotency_key) > MAX_KEY_CHARS or "\x00" in idempotency_key:
            message = f"the header Idempotency-Key must be given, with 1 to {MAX_KEY_CHARS} characters"
            raise ApiError(400, "idempotency_key_required", message)
        body = await _object(request) if await request.body() else {}
        try:
            record = trigger(campaign_id, idempotency_key, body.get("areas"), gazetteer, clock.now_ms())
        except ValueError as error:
            raise ApiError(422, "invalid_areas", str(error)) from error
        await _log(sender, topic, [record])
        return {"campaign": campaign_id, "context_id": record.id}


async def _object(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body."""
    try:
        body = msgspec.json.decode(await request.body())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "malformed_json", f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "invalid_context", "the body must be a JSON object")
    return body


async def _log(sender: Sender, topic: str, records: list[ContextRecord]) -> None:
    """Append to the context log; 503 while the broker is away."""
    try:
        if records:
            await sender.send(topic, 0, [Record(r.id.encode(), encode_context(r)) for r in records])
    except SendFailed as error:
        raise ApiError(503, "broker_away", str(error), headers={"Retry-After": "2"}) from error


def _kill_routes(router: APIRouter, pool: Pool, book: CampaignBook) -> None:
    @router.post("/v1/kill", tags=["operations"])
    async def kill() -> dict[str, Any]:
        """Stop all sending, everywhere within 2 s. What is planned meanwhile waits, and is judged again."""
        await pool.execute("UPDATE control.installation SET sending = false")
        book.sending = False
        return {"sending": False}

    @router.delete("/v1/kill", tags=["operations"])
    async def revive() -> dict[str, Any]:
        """Allow sending again."""
        await pool.execute("UPDATE control.installation SET sending = true")
        book.sending = True
        return {"sending": True}


def _known(book: CampaignBook, campaign_id: str) -> Any:
    active = book.by_id.get(campaign_id)
    if active is None:
        raise ApiError(404, "unknown_campaign", f"no campaign {campaign_id!r} is in force; see GET /v1/campaigns")
    return active
