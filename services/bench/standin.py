"""What takes pushes faster than any dispatcher sends them: FCM's form of answer, and a count.

`python -m services.bench.standin`, in the place of the push sandbox, which would itself be the limit: that one checks
and remembers every push.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import cast

import httptools
import msgspec
import uvloop

from shared.process.supervisor import Supervisor

_TOKEN = msgspec.json.encode({"access_token": "bench", "expires_in": 3600, "token_type": "Bearer"})


class StandIn(asyncio.Protocol):
    taken = 0

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._path = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by descent

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path = url

    def on_message_complete(self) -> None:
        assert self._transport is not None
        if self._path.endswith(b"messages:send"):
            StandIn.taken += 1
            body = b'{"name":"projects/demo/messages/0:%016d"}' % StandIn.taken
        elif self._path.startswith(b"/pushes/count"):
            body = b'{"count":%d}' % StandIn.taken
        else:
            body = _TOKEN
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )


async def main() -> int:
    async with AsyncExitStack() as stack:
        port = int(os.environ["PERENNIAL_SANDBOX_PORT"])
        server = await asyncio.get_running_loop().create_server(StandIn, "127.0.0.1", port, backlog=1024)
        stack.callback(server.close)
        return await Supervisor(stack).run()


if __name__ == "__main__":
    raise SystemExit(uvloop.run(main()))
