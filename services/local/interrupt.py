"""How a foreground command ends on Ctrl-C, a closed terminal or SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """The command was asked to end and has cleaned up."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end. A signal cancels it, so that it stops what it started; the next ones hurry that.

    Raises Interrupted when a signal ended it.
    """
    return asyncio.run(_watched(work))


async def _watched(work: Coroutine[Any, Any, T]) -> T:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    asked = False

    def ask() -> None:
        nonlocal asked
        asked = True
        task.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, ask)
    try:
        return await task
    except asyncio.CancelledError:
        if asked:
            raise Interrupted from None
        raise
