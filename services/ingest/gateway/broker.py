"""Whether the broker can be written to now, and through which producer.

The producer is made anew after failures it may not recover from. The gateway starts without a broker and
outlives one: posts are answered 503 meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import FIRST_COMPLETED
from collections.abc import Callable
from typing import Any, Protocol

from aiokafka.errors import KafkaError

from shared.kafka.log_reader import LogReader
from shared.kafka.sender import Record, Sender, SendFailed
from shared.process.clock import monotonic
from shared.process.errors import Fatal, Transient
from shared.process.http import Health
from shared.process.retry import backoff_seconds

log = logging.getLogger("perennial.gateway.broker")

_MOMENTS = (Transient, KafkaError, TimeoutError, OSError)
_PROBE_TIMEOUT_SECONDS = 5.0
_RENEW_SECONDS = 1.0


class Outlet(Protocol):
    """What the collector needs of the broker."""

    away: str
    """Why nothing can be sent now; empty while it can."""

    async def send(self, partition: int, records: list[Record]) -> None:
        """Append to one partition of raw; `SendFailed` where that is not certain."""

    def suspect(self) -> None:
        """Something was not acknowledged in time: look at the broker at once."""


class Broker:
    """The raw topic. `run` keeps a working producer; `Fatal` when the topic has another number of shards."""

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        shards: int,
        health: Health,
        *,
        timeout_ms: int = 5_000,
        probe_seconds: float = 2.0,
        make_sender: Callable[[], Sender] | None = None,
    ) -> None:
        self._bootstrap, self._topic, self._shards, self._health = (
            bootstrap,
            topic,
            shards,
            health,
        )
        self._probe_seconds = probe_seconds
        self._make_sender = make_sender or (lambda: Sender(bootstrap, timeout_ms=timeout_ms))
        self._sender: Sender | None = None
        self._reader: LogReader | None = None
        self._doubt = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self.away = "not connected to the broker yet"

    async def send(self, partition: int, records: list[Record]) -> None:
        if self._sender is None:
            raise SendFailed(self.away)
        await self._sender.send(self._topic, partition, records)

    def suspect(self) -> None:
        self._doubt.set()

    async def run(self) -> None:
        attempt = 0
        while True:
            self._health.beat("broker", 60)
            try:
                await self._connect()
            except _MOMENTS as error:
                self._lost(error, attempt)
                await asyncio.sleep(backoff_seconds(attempt, most=2.0))
                attempt += 1
                continue
            if self.away:
                log.info("the broker answers")
            self.away, attempt = "", 0
            connected_at = monotonic()
            try:
                await self._watch()
            except _MOMENTS as error:
                self._lost(error, 0)
            await asyncio.sleep(max(0.0, _RENEW_SECONDS - (monotonic() - connected_at)))

    async def _connect(self) -> None:
        """A new producer in the place of the old one, once the topic was seen to be right."""
        self._retire_reader()
        self._reader = LogReader(self._bootstrap, _PROBE_TIMEOUT_SECONDS)
        await self._reader.start()
        found = await self._reader.partitions(self._topic)
        if found == 0:
            raise Transient(f"topic {self._topic} does not exist (yet); `perennial migrate` makes it")
        if found != self._shards:
            raise Fatal(
                f"topic {self._topic} has {found} partitions, but this installation has {self._shards} shards; "
                "PERENNIAL_SHARDS is fixed when the installation is made"
            )
        fresh = self._make_sender()
        await fresh.start()
        self._doubt.clear()
        old, self._sender = self._sender, fresh
        if old is not None:
            self._later(old.stop())

    async def _watch(self) -> None:
        """Return when the producer should be made anew; raise when the broker does not answer."""
        assert self._reader is not None
        doubt: asyncio.Future[Any] = asyncio.ensure_future(self._doubt.wait())
        probe: asyncio.Future[Any] | None = None
        try:
            while True:
                self._health.beat("broker", 60)
                await asyncio.wait({doubt}, timeout=self._probe_seconds)
                if not doubt.done():
                    probe = asyncio.ensure_future(self._reader.ends(self._topic, [0]))
                    await asyncio.wait({doubt, probe}, timeout=_PROBE_TIMEOUT_SECONDS, return_when=FIRST_COMPLETED)
                if doubt.done():
                    log.warning("a batch was not acknowledged; connecting to the broker anew")
                    return
                if probe is None or not probe.done():
                    raise Transient(f"no answer within {_PROBE_TIMEOUT_SECONDS} s")
                probe.result()
        finally:
            unfinished = [doubt] if probe is None else [doubt, probe]
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    def _lost(self, error: BaseException, attempt: int) -> None:
        self.away = f"the broker does not answer: {str(error) or type(error).__name__}"
        if attempt == 0:
            log.warning(self.away)
        if self._sender is not None:
            self._later(self._sender.stop())
            self._sender = None

    def _retire_reader(self) -> None:
        if self._reader is not None:
            self._later(self._reader.stop())
            self._reader = None

    def _later(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def stop(self) -> None:
        """Flush and close; at most about five seconds each, all at once."""
        self.away = "stopping"
        self._retire_reader()
        if self._sender is not None:
            self._later(self._sender.stop())
            self._sender = None
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)
