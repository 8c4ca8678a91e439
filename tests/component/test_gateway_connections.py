"""Clients that do not get a request across are cut off, whatever part of it they withhold; the others are left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.ingest.gateway.connections import connections
from shared.process.http import serve
from tests.support.ports import free_port

MOST_SECONDS = 0.4
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def answering_at_once(scope: Any, receive: Any, send: Any) -> None:
    """Answers without having read the body, as a refusal does."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    port = free_port()
    http = connections(MOST_SECONDS)
    serving = asyncio.create_task(
        serve(answering_at_once, "127.0.0.1", port, http=http, ws="none", timeout_keep_alive=1)
    )
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                break
    yield port
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def until_closed(reader: asyncio.StreamReader) -> float:
    """Seconds until the server closes the connection."""
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(10):
        while await reader.read(1000):
            pass
    return asyncio.get_running_loop().time() - began


@pytest.mark.parametrize("sent", [b"", b"POST / HT", HEAD[:-2], HEAD, HEAD + b"x" * 10], ids=range(5))
async def test_a_client_that_stops_half_way_is_cut_off(port: int, sent: bytes) -> None:
    """Before its request, in the head, at the body and in it, also where the answer was given already."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    assert MOST_SECONDS * 0.9 < await until_closed(reader) < MOST_SECONDS + 2
    writer.close()


async def test_a_client_that_dribbles_a_body_nobody_reads_is_cut_off(port: int) -> None:
    """Each byte shows life, and the answer is long given: uvicorn would go on listening for ever."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD)

    async def dribble() -> None:
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.02)

    dribbling = asyncio.create_task(dribble())
    try:
        assert await until_closed(reader) < MOST_SECONDS + 2
    finally:
        dribbling.cancel()
        writer.close()


async def test_a_client_that_asks_again_and_again_is_served(port: int) -> None:
    """For longer than one request may take."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    loop = asyncio.get_running_loop()
    end, served = loop.time() + 2 * MOST_SECONDS, 0
    while loop.time() < end:
        writer.write(WHOLE)
        async with asyncio.timeout(5):
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(2) == b"ok"
        served += 1
        await asyncio.sleep(0.05)
    assert served > 5
    writer.close()


async def test_a_connection_idle_behind_a_late_body_ends_like_any_idle_one(port: int) -> None:
    """uvicorn stops its watch on an idle connection when the rest of an answered body arrives, and starts no other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD)
    async with asyncio.timeout(5):
        await reader.readuntil(b"ok")
    writer.write(b"x" * 1000)
    assert await until_closed(reader) < 4
    writer.close()
