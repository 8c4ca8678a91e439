"""How long a client may take to get a request across: what uvicorn leaves open.

It bounds the time between two requests. It waits for ever for a client that sends no request, half of one's headers, or
drop by drop a body that was answered already.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class _Connection(HttpToolsProtocol):
    """One client's connection; closed where a request, once begun, is not whole after `most_seconds`."""

    most_seconds: float
    _begun_at: float | None = None
    _look_later: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begun_at = self.loop.time()
        self._look_later = self.loop.call_later(self.most_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look_later is not None:
            self._look_later.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._begun_at = self.loop.time()
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._begun_at = None
        super().on_message_complete()
        if self.cycle.response_complete and self.timeout_keep_alive_task is None:
            # answered before it was whole; uvicorn stopped its own watch when the rest arrived
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _look(self) -> None:
        left = self.most_seconds
        if self._begun_at is not None:
            left -= self.loop.time() - self._begun_at
            if left <= 0:
                self.transport.close()
                return
        self._look_later = self.loop.call_later(max(left, 0.05), self._look)


def connections(most_seconds: float) -> Any:
    """The protocol class for uvicorn's `http`."""
    return type("Connection", (_Connection,), {"most_seconds": most_seconds})
