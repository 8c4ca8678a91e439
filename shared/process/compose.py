"""How parts with `start` and `stop` are opened on an exit stack, waiting while the world is not there yet."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Protocol, TypeVar

from shared.process.retry import persist

log = logging.getLogger("perennial.start")


class Part(Protocol):
    async def start(self) -> None: ...

    async def stop(self) -> None: ...


P = TypeVar("P", bound=Part)
T = TypeVar("T")


async def opened(stack: AsyncExitStack, part: P) -> P:
    """Start `part`, again while that is `Transient`, and have the stack stop it."""
    await patiently(part.start)
    stack.push_async_callback(part.stop)
    return part


async def patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Do `work` until it is no longer `Transient`; each failure is one log line."""
    return await persist(work, lambda error, _: log.warning("%s", error))
