"""Why did a phone get this push? Asked of the notifier and the segmenter for the message id that the push carries.

The sandbox asks, with a key that the browser never sees; what it tells is about pushes that arrived here, and no more.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from services.demo.weather import named
from shared.gazetteer import load as load_gazetteer

PATIENCE_SECONDS = 5.0


class Untold(Exception):
    """Nobody can say; `code` and `status` as the sandbox answers with."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Why:
    """Answers for one installation: the addresses of its services, and a key of theirs (empty: it has none to ask)."""

    def __init__(self, session: aiohttp.ClientSession, notifier: str, segmenter: str, admin_key: str) -> None:
        self._session, self._notifier, self._segmenter = session, notifier, segmenter
        self._headers = {"Authorization": f"Bearer {admin_key}"} if admin_key else {}

    async def of(self, message_id: str) -> dict[str, Any]:
        """The message with its gates, its campaign, the ledger row it goes back to with the city that it names, and the
        alert if it was one.

        `ledger`, `city` and `context` are None where there are none. `Untold` when the services cannot be asked."""
        if not self._headers or not self._notifier or not self._segmenter:
            raise Untold(503, "on_its_own", "this sandbox was started by itself and knows no installation to ask")
        message = await self._one(self._notifier, f"/v1/messages/{quote(message_id, safe='')}")
        if message is None:
            raise Untold(404, "unknown_message", f"the notifier knows no message {message_id!r}")
        cause, run = message["cause"], message["cause"].get("run")
        ledger = await self._row(message["user_id"], cause["ledger"]["seq"])
        place = load_gazetteer().get(int(ledger["city_id"])) if ledger is not None and "city_id" in ledger else None
        return {
            "message": message,
            "campaign": await self._one(self._notifier, f"/v1/campaigns/{message['campaign']}"),
            "ledger": ledger,
            "city": named(place) if place is not None else None,
            "context": await self._first(self._notifier, "/v1/context", id=run["context_id"]) if run else None,
        }

    async def _row(self, user_id: str, seq: int) -> dict[str, Any] | None:
        """The row of the user's history with this number; what is no history (a tap, a moment) has none."""
        found = await self._first(
            self._segmenter, f"/v1/users/{quote(user_id, safe='')}/timeline", cursor=str(seq - 1), limit="1"
        )
        return found if found is not None and found["seq"] == seq else None

    async def _first(self, url: str, path: str, **query: str) -> dict[str, Any] | None:
        found = await self._one(url, path, **query)
        return found["items"][0] if found is not None and found["items"] else None

    async def _one(self, url: str, path: str, **query: str) -> dict[str, Any] | None:
        """What is at that path, which is quoted already; None when there is nothing."""
        patience = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
        try:
            async with self._session.get(
                URL(url + path, encoded=True).with_query(query), headers=self._headers, timeout=patience
            ) as answer:
                if answer.status == 404:
                    return None
                answer.raise_for_status()
                found: dict[str, Any] = await answer.json()
                return found
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Untold(503, "does_not_answer", f"{url} does not answer: {error or type(error).__name__}") from error
