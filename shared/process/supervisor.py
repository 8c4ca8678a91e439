"""What ends a process: a signal, or any of its tasks ending unasked."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any

from shared.process.errors import Fatal

log = logging.getLogger("perennial.supervisor")


class Supervisor:
    """Runs a process's tasks. `run` returns the exit code: 0 after a signal, 1 after a task ended, 3 when it
    refused to go on (`Fatal`).

    Tasks are cancelled in the reverse order of `add`, then `stack` is closed, all under one deadline;
    a process that outstays it is ended hard by its caller.
    """

    def __init__(self, stack: AsyncExitStack, stop_seconds: float = 15.0) -> None:
        self._stack = stack
        self._stop_seconds = stop_seconds
        self._tasks: list[asyncio.Task[Any]] = []
        self._stop = asyncio.Event()

    def add(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> int:
        _calm_gc()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        asked = asyncio.create_task(self._stop.wait(), name="stop")
        done, _ = await asyncio.wait([asked, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        code = 0
        for task in done - {asked}:
            error = task.exception() if not task.cancelled() else None
            code = 3 if isinstance(error, Fatal) else 1
            trace = None if isinstance(error, Fatal) else error
            log.critical("task %s ended: %s", task.get_name(), error or "returned", exc_info=trace)
        asked.cancel()
        try:
            async with asyncio.timeout(self._stop_seconds):
                for task in reversed(self._tasks):
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                await self._stack.aclose()
        except TimeoutError:
            log.error("not stopped within %s s; leaving", self._stop_seconds)
            code = code or 1
        return code


def _calm_gc() -> None:
    """Leave what was loaded at the start (the gazetteer above all) out of every collection, and collect less
    often: scanning it again and again stopped a service for tenths of a second under load."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
