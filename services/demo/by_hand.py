"""`perennial demo alert EVENT CITY`: one alert, posted as any weather service would, and whom it reached."""

from __future__ import annotations

from typing import Any

import aiohttp
import typer

from services.demo import weather
from services.demo.watch import until
from services.local.database import connected
from services.local.program import LocalError
from shared.gazetteer import load as load_gazetteer
from shared.process.clock import Clock

REACH_SECONDS = 30.0

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


async def post_alert(status: dict[str, Any], event: str, city: str) -> int:
    """Posts the alert to the installation `status` tells of; waits until its pushes have been sent."""
    place = weather.find_city(city, load_gazetteer())
    body = weather.alert(event, place, Clock(_clock_of(status)).now_ms())
    headers = {"Authorization": f"Bearer {status['admin_key']}"}
    try:
        async with (
            aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=15)) as session,
            session.post(f"{status['notifier']}/v1/context", json=body) as answer,
        ):
            if answer.status != 202:
                raise LocalError(f"the notifier does not take the alert: {answer.status} {await answer.text()}")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise LocalError(f"the notifier does not answer at {status['notifier']}: {error}") from error
    typer.echo(
        f"{body['data']['event']} for {place.name}, {place.state} ({body['severity']}, for one hour): {body['id']}"
    )
    async with connected(str(status["postgres"])) as database:

        async def reached() -> bool:
            row = await database.fetchrow(_RUNS, body["id"])
            return row is not None and bool(row["judged"]) and not row["left"]

        done = await until(reached, REACH_SECONDS)
        rows = await database.fetch(_REACHED, body["id"])
    sent = sum(row["messages"] for row in rows if row["state"] == "sent")
    typer.echo(f"{sum(row['messages'] for row in rows):,} users have this city; {sent:,} pushes sent")
    for row in rows:
        if row["state"] != "sent":
            because = f": {row['reason']}" if row["reason"] else ""
            typer.echo(f"  {row['messages']:,} {row['state'].replace('_', ' ')}{because}")
    if not done:
        typer.echo(f"not all of it was done after {REACH_SECONDS:.0f} s; see GET /v1/messages", err=True)
    return 0 if done else 1


def _clock_of(status: dict[str, Any]) -> str:
    """With --dev, the product's time is what a file of the home says."""
    return f"{status['home']}/clock.json" if status.get("dev") else ""
