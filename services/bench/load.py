"""How requests reach a gateway as fast as it takes them, or at a pace; each counted until its answer.

`python -m services.bench.load`, driven by `helper`. Bounded by the seconds or requests it is told; 127.0.0.1 only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AsyncExitStack
from typing import Any, cast

import httptools

from services.bench import helper, traffic
from services.bench.figures import percentile
from shared.process.clock import Clock, monotonic

_HOST = "127.0.0.1"
_LONGEST_SECONDS = 300.0


class Run:
    """One run over prepared requests: again and again until `seconds` have passed, or each once where that is None.

    With a `rate` (requests a second) a request's time counts from when it was due, whether or not a connection was
    free: who is slow is asked no less."""

    def __init__(self, requests: list[bytes], seconds: float | None, rate: float | None) -> None:
        self._requests, self._seconds, self._rate = requests, seconds, rate
        self._next = 0
        self._again: deque[int] = deque()
        self._due: deque[float] = deque()
        self._idle: list[Connection] = []
        self._busy = 0
        self._done = asyncio.Event()
        self.latencies: list[float] = []
        self.failed = 0
        self.began = self.ended = 0.0

    async def run(self, connections: list[Connection]) -> None:
        self.began = monotonic()
        self._idle = list(connections)
        pacing = asyncio.create_task(self._pace()) if self._rate is not None else None
        if pacing is None:
            self._wake(len(connections))
        async with asyncio.timeout(_LONGEST_SECONDS):
            await self._done.wait()
            if pacing is not None:
                await pacing

    def answered(self, connection: Connection, request: int, began: float, status: int) -> None:
        self.ended = monotonic()
        self._busy -= 1
        if status == 200:
            self.latencies.append(self.ended - began)
        else:
            self.failed += 1
            if self._seconds is None:
                self._again.append(request)
        self._idle.append(connection)
        self._wake(1)

    def _wake(self, most: int) -> None:
        for _ in range(most):
            request = self._take() if self._idle else None
            if request is None:
                break
            began = self._due.popleft() if self._rate is not None else monotonic()
            self._busy += 1
            self._idle.pop().ask(self, request, self._requests[request], began)
        if self._busy == 0 and self._over():
            self._done.set()

    def _take(self) -> int | None:
        if self._rate is not None and not self._due:
            return None
        if self._again:
            return self._again.popleft()
        if self._over():
            return None
        self._next += 1
        return (self._next - 1) % len(self._requests)

    def _over(self) -> bool:
        if self._seconds is None:
            return self._next >= len(self._requests) and not self._again
        if self._rate is not None:
            return self._next >= int(self._seconds * self._rate)
        return monotonic() - self.began >= self._seconds

    async def _pace(self) -> None:
        assert self._rate is not None
        total = len(self._requests) if self._seconds is None else int(self._seconds * self._rate)
        sent = 0
        while sent < total:
            due = min(total, int((monotonic() - self.began) * self._rate) + 1)
            self._due.extend(self.began + n / self._rate for n in range(sent, due))
            self._wake(due - sent)
            sent = due
            await asyncio.sleep(max(0.0, self.began + sent / self._rate - monotonic()))


class Connection(asyncio.Protocol):
    """One kept-alive connection, one request at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._run: Run | None = None
        self._request, self._began = 0, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by descent

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def ask(self, run: Run, request: int, raw: bytes, began: float) -> None:
        assert self._transport is not None
        self._run, self._request, self._began = run, request, began
        self._transport.write(raw)

    def on_message_complete(self) -> None:
        run, self._run = self._run, None
        assert run is not None
        run.answered(self, self._request, self._began, self._parser.get_status_code())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Load:
    def __init__(self, port: int, headers: dict[str, str]) -> None:
        self._port = port
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._prepared: dict[str, list[bytes]] = {}

    def _requests(self, told: dict[str, Any]) -> list[bytes]:
        name = repr(sorted(told.items()))
        if name not in self._prepared:
            crowd = traffic.Crowd(told["users"], told["spread"], told["seed"], told["tag"])
            bodies = traffic.posts(told["shape"], told["size"], told["many"], crowd, Clock().real_ms())
            path = "/v1/batch" if told["shape"] in ("phones", "mixed") else "/v1/track"
            head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n{self._headers}"
            self._prepared[name] = [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
        return self._prepared[name]

    async def ask(self, told: dict[str, Any]) -> dict[str, Any]:
        """`posts` describes the requests. With `forget` they are not kept for a later run."""
        requests = self._requests(told["posts"])
        if told.get("prepare"):
            return {}
        if told.get("forget"):
            self._prepared.clear()
        loop = asyncio.get_running_loop()
        port = told.get("port", self._port)
        connections = [
            (await loop.create_connection(Connection, _HOST, port))[1] for _ in range(told.get("connections", 32))
        ]
        began_ms = Clock().real_ms()
        run = Run(requests, told.get("seconds"), told.get("rate"))
        try:
            await run.run(connections)
        finally:
            for connection in connections:
                connection.close()
        return {
            "requests": len(run.latencies),
            "events": len(run.latencies) * told["posts"]["size"],
            "seconds": run.ended - run.began,
            "failed": run.failed,
            "began_ms": began_ms,
            "p50_ms": percentile(run.latencies, 50) * 1000 if run.latencies else None,
            "p99_ms": percentile(run.latencies, 99) * 1000 if run.latencies else None,
        }


async def _open(_: AsyncExitStack, setup: dict[str, Any]) -> helper.Ask:
    return Load(setup["port"], setup["headers"]).ask


if __name__ == "__main__":
    helper.serve(_open)
