"""The dispatcher's ceiling: aiohttp posts one and the same body to the same stand-in, as many at once. Nothing is
judged, written down or looked at but the status."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
from yarl import URL

from services.bench import helper
from services.notifier.transports.fcm import message_body
from services.notifier.transports.push import Push
from shared.process.clock import Clock, monotonic


async def _open(stack: AsyncExitStack, setup: dict[str, Any]) -> helper.Ask:
    session = await stack.enter_async_context(
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=100, keepalive_timeout=30), cookie_jar=aiohttp.DummyCookieJar()
        )
    )
    url, real_ms = URL(setup["url"] + "/v1/projects/demo/messages:send"), Clock().real_ms()
    headers = {"Authorization": "Bearer bench", "Content-Type": "application/json"}
    body = message_body(Push(**setup["push"]), real_ms)

    async def ask(told: dict[str, Any]) -> dict[str, Any]:
        left = told["events"]

        async def post() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                async with session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                    await answer.read()
                    if answer.status != 200:
                        raise RuntimeError(f"the stand-in answered {answer.status}")

        began = monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(setup["at_once"]):
                group.create_task(post())
        return {"events": told["events"], "seconds": monotonic() - began}

    return ask


if __name__ == "__main__":
    helper.serve(_open)
