"""Dead letters by HTTP: listed, counted, shown with their values masked, and replayed."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request

from services.ingest.domain.masking import shown, shown_headers
from services.ingest.letters import listing, requests
from services.ingest.letters.listing import FAR_MS, Matching
from shared.data.db import Pool, is_moment
from shared.data.keys import AdminKeys
from shared.kafka.log_reader import LogReader
from shared.process.clock import iso, parse_instant
from shared.process.errors import Transient
from shared.process.http import ApiError

Text = Annotated[str, Query(max_length=256, pattern=r"^[^\x00]*$")]
_AWAY = ApiError(
    503, "not_ready", "the database or the broker does not answer; try again", headers={"Retry-After": "2"}
)


def matching(
    reason: Text = "",
    user: Text = "",
    source: Text = "",
    since: Annotated[str, Query(alias="from", description="received from this instant on")] = "",
    until: Annotated[str, Query(alias="to", description="received before this instant")] = "",
) -> Matching:
    return Matching(reason, user, source, _instant(since, 0), _instant(until, FAR_MS))


Which = Annotated[Matching, Depends(matching)]


def letters(pool: Pool, reader: LogReader, raw_topic: str, shards: int) -> APIRouter:
    """The routes; every one needs an admin key."""
    router = APIRouter(
        prefix="/v1/dead-letters", tags=["dead letters"], dependencies=[Depends(AdminKeys(pool).require)]
    )

    @router.get("")
    async def newest(
        which: Which, cursor: str = "", limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> dict[str, Any]:
        """Refused events, newest first."""
        try:
            async with _Connected(pool) as connection:
                items, following = await listing.newest(connection, which, limit, cursor)
        except ValueError as error:
            raise ApiError(400, "invalid_cursor", str(error)) from error
        return {"items": items, "next": following}

    @router.get("/stats")
    async def stats(which: Which) -> dict[str, Any]:
        """How many, by reason, source and day."""
        async with _Connected(pool) as connection:
            return await listing.counts(connection, which)

    @router.post("/replay", status_code=202)
    async def replay(request: Request) -> dict[str, Any]:
        """Have dead letters put into raw again: `{"reason", "user", "source", "from", "to", "event", "raw": ["3/17"],
        "dry_run", "force"}`, all optional. It goes on by itself; ask for the replay to see how far it is."""
        asked = _asked(await request.body())
        async with _Connected(pool) as connection:
            replay_id = await requests.ask(connection, asked)
            return (await requests.told(connection, replay_id))[0]

    @router.get("/replays")
    async def replays(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
        """Replays, newest first."""
        async with _Connected(pool) as connection:
            return {"items": await requests.told(connection, limit=limit), "next": None}

    @router.get("/replays/{replay_id}")
    async def progress(replay_id: str) -> dict[str, Any]:
        async with _Connected(pool) as connection:
            found = await requests.told(connection, replay_id)
        if not found or "\x00" in replay_id:
            raise ApiError(404, "unknown_replay", f"there is no replay {replay_id!r}")
        return found[0]

    @router.delete("/replays/{replay_id}")
    async def cancel(replay_id: str) -> dict[str, Any]:
        """Call a replay off: what was sent stays sent."""
        async with _Connected(pool) as connection:
            await requests.cancel(connection, replay_id)
        return await progress(replay_id)

    @router.get("/{partition}/{offset}")
    async def show(partition: int, offset: int) -> dict[str, Any]:
        """One raw event, its values masked."""
        if not (0 <= partition < shards and 0 <= offset < 2**63):
            raise ApiError(404, "unknown_record", f"raw has no partition {partition} with an offset {offset}")
        try:
            record = (await reader.at(raw_topic, {partition: offset}))[partition]
        except Transient as error:
            raise _AWAY from error
        if record is None:
            raise ApiError(404, "unknown_record", f"raw {partition} holds no record {offset} (any more)")
        return told(record.headers, record.value)

    return router


def told(headers: Any, value: bytes | None) -> dict[str, Any]:
    """One raw record as it may be shown."""
    texts = shown_headers(headers)
    received = texts.get("received_at", "")
    return {
        "headers": texts,
        "received_at": iso(int(received)) if received.isdecimal() and len(received) < 15 else None,
        "event": shown(value),
    }


class _Connected:
    """A connection of the pool; 503 while there is none."""

    def __init__(self, pool: Pool) -> None:
        self._taken = pool.acquire()

    async def __aenter__(self) -> Any:
        try:
            return await self._taken.__aenter__()
        except Exception as error:
            if is_moment(error):
                raise _AWAY from error
            raise

    async def __aexit__(self, *about: object) -> None:
        await self._taken.__aexit__(*about)


def _instant(text: str, otherwise: int) -> int:
    if not text:
        return otherwise
    try:
        return parse_instant(text)
    except (ValueError, OverflowError) as error:
        raise ApiError(
            400, "invalid_instant", f"{text!r} is no instant; write for example 2026-01-31T00:00:00Z"
        ) from error


def _asked(body: bytes) -> requests.Asked:
    try:
        given = msgspec.json.decode(body or b"{}", type=dict[str, Any])
        since, until = given.pop("from", ""), given.pop("to", "")
        asked = msgspec.convert(given, requests.Asked)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "invalid_body", f"the body is not of the expected form: {error}") from error
    if not (isinstance(since, str) and isinstance(until, str)):
        raise ApiError(400, "invalid_instant", "from and to are instants: 2026-01-31T00:00:00Z")
    if wrong := requests.check(asked):
        raise ApiError(400, "invalid_body", wrong)
    return msgspec.structs.replace(asked, since=_instant(since, asked.since), until=_instant(until, asked.until))
