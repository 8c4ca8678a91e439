"""`perennial demo alert EVENT CITY` and `perennial demo forecast CITY`: one alert or forecast, posted as any weather
service would, and whom it reached."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import asyncpg
import typer

from services.demo import forecasts, weather
from services.demo.watch import until
from services.local.database import connected
from services.local.program import LocalError
from shared.contracts.identifiers import fresh_id
from shared.gazetteer import Place
from shared.gazetteer import load as load_gazetteer
from shared.process.clock import Clock

REACH_SECONDS = 30.0
MOST_NAMED = 5

_RUNS = """
SELECT (SELECT count(*) FROM notifier.context_event WHERE context_id = $1) AS judged,
    (SELECT count(*) FROM notifier.run JOIN notifier.run_shard USING (run_id) WHERE context_id = $1 AND NOT done)
    + (SELECT count(*) FROM notifier.message m JOIN notifier.run r USING (run_id)
       WHERE r.context_id = $1 AND m.state IN ('intent', 'attempted')) AS left
"""
_REACHED = """
SELECT m.state, m.reason, count(*) AS messages FROM notifier.message m JOIN notifier.run r USING (run_id)
WHERE r.context_id = $1 GROUP BY m.state, m.reason ORDER BY m.state, m.reason
"""
_TOLD = """
SELECT m.user_id, m.title FROM notifier.message m JOIN notifier.run r USING (run_id)
WHERE r.context_id = $1 AND m.state = 'sent' ORDER BY m.user_id LIMIT $2
"""


async def post_alert(status: dict[str, Any], event: str, city: str) -> int:
    """Posts the alert to the installation `status` tells of; waits until its pushes have been sent, and says to whom.
    `city` is what a person types; of several cities of that name the largest is taken, and that is said."""
    place = weather.find_city(city, load_gazetteer())
    body = weather.alert(event, place, Clock(_clock_of(status)).now_ms())
    async with _notifier(status) as notifier:
        await notifier.post("/v1/context", body)
    typer.echo(f"{body['data']['event']} for {weather.named(place)} ({body['severity']}, for one hour): {body['id']}")
    _say_which(city, place)
    return await _reach(status, body["id"])


async def post_forecast(status: dict[str, Any], city: str) -> int:
    """Posts a made-up forecast and sets the campaign that tells of forecasts going for the city, whatever the hour."""
    place = weather.find_city(city, load_gazetteer())
    key = fresh_id("demo-")
    body = forecasts.forecast(place, 0, Clock(_clock_of(status)).now_ms())
    async with _notifier(status) as notifier:
        campaigns = [c["id"] for c in (await notifier.get("/v1/campaigns"))["items"] if forecasts.tells_of_forecasts(c)]
        if not campaigns:
            raise LocalError("the pack in force has no campaign that waits for the clock and tells of forecasts")
        await notifier.post("/v1/context", body)
        areas = {"areas": body["areas"]}
        told = await notifier.post(f"/v1/campaigns/{campaigns[0]}/trigger", areas, {"Idempotency-Key": key})
    typer.echo(f"{campaigns[0]} for {weather.named(place)}: {body['data']['summary']}")
    _say_which(city, place)
    return await _reach(status, told["context_id"])


class _Notifier:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def get(self, path: str) -> Any:
        async with self._session.get(self._url + path) as answer:
            return await self._told(answer)

    async def post(self, path: str, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> Any:
        async with self._session.post(self._url + path, json=body, headers=headers) as answer:
            return await self._told(answer)

    async def _told(self, answer: aiohttp.ClientResponse) -> Any:
        if answer.status >= 400:
            raise LocalError(f"the notifier does not take it: {answer.status} {await answer.text()}")
        return await answer.json()


@asynccontextmanager
async def _notifier(status: dict[str, Any]) -> AsyncIterator[_Notifier]:
    headers = {"Authorization": f"Bearer {status['admin_key']}"}
    try:
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=15)) as session:
            yield _Notifier(session, status["notifier"])
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise LocalError(f"the notifier does not answer at {status['notifier']}: {error}") from error


async def _reach(status: dict[str, Any], context_id: str) -> int:
    """Waits until what was posted has reached everyone; says whom."""
    async with connected(str(status["postgres"])) as database:

        async def reached() -> bool:
            row = await database.fetchrow(_RUNS, context_id)
            return row is not None and bool(row["judged"]) and not row["left"]

        done = await until(reached, REACH_SECONDS)
        rows = await database.fetch(_REACHED, context_id)
        told = await database.fetch(_TOLD, context_id, MOST_NAMED)
    for line in _outcome(rows, told, str(status["sandbox"] or "")):
        typer.echo(line)
    if not rows and (elsewhere := await _cities(status)):
        typer.echo(f"try one that people have: {'; '.join(elsewhere)}")
    if not done:
        typer.echo(f"not all of it was done after {REACH_SECONDS:.0f} s; see GET /v1/messages", err=True)
    return 0 if done else 1


def _say_which(typed: str, place: Place) -> None:
    """Where several cities have the name, say which was taken."""
    others = load_gazetteer().namesakes(place.city_id)
    if others and place.state.lower() not in typed.lower().replace(",", " ").split():
        typer.echo(f"  the largest city of that name; also: {'; '.join(map(weather.named, others[:MOST_NAMED]))}")


async def _cities(status: dict[str, Any]) -> list[str]:
    """Where the most users live."""
    headers = {"Authorization": f"Bearer {status['admin_key']}"}
    url = f"{status['segmenter']}/v1/cohorts?relation=default&limit={MOST_NAMED}"
    async with aiohttp.ClientSession(headers=headers) as session, session.get(url) as answer:
        answer.raise_for_status()
        return [f"{one['name']}, {one['state']} ({one['users']})" for one in (await answer.json())["items"]]


def _outcome(rows: Sequence[asyncpg.Record], told: Sequence[asyncpg.Record], sandbox: str) -> Iterator[str]:
    """Who was told, who was not and why, and where to look."""
    users, sent = sum(row["messages"] for row in rows), sum(row["messages"] for row in rows if row["state"] == "sent")
    yield f"users who live there or added it: {users:,}; pushes sent: {sent:,}"
    for row in rows:
        if row["state"] != "sent":
            because = f": {row['reason']}" if row["reason"] else ""
            yield f"  {row['messages']:,} {row['state'].replace('_', ' ')}{because}"
    for one in told:
        yield f"  {one['user_id']}  {one['title']}"
    if sent > len(told):
        yield f"  … and {sent - len(told):,} more"
    if told:
        yield (
            "look at the phones"
            + (f" at {sandbox}/" if sandbox else "")
            + (f", or at one of them with `perennial follow {told[0]['user_id']}`")
        )


def _clock_of(status: dict[str, Any]) -> str:
    """With --dev, the product's time is what a file of the home says."""
    return f"{status['home']}/clock.json" if status.get("dev") else ""
