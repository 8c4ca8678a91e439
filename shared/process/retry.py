"""How long to wait before the same work is tried again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared.process.errors import Transient

T = TypeVar("T")


def backoff_seconds(attempt: int, base: float = 0.1, most: float = 5.0) -> float:
    """Exponential backoff with full jitter: between half and all of `base * 2**attempt`, at most `most`."""
    span = min(most, base * 2 ** min(attempt, 16))
    return float(span * (0.5 + os.urandom(1)[0] / 512))


async def persist(work: Callable[[], Awaitable[T]], on_failure: Callable[[Exception, int], None]) -> T:
    """Do `work` until it no longer raises `Transient`; tell `on_failure` each time."""
    attempt = 0
    while True:
        try:
            return await work()
        except Transient as error:
            on_failure(error, attempt)
            await asyncio.sleep(backoff_seconds(attempt))
            attempt += 1
