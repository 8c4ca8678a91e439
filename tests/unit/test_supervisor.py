"""How a process ends: any task that ends unasked ends it, in reverse order, under one deadline."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack

import pytest

from shared.process.errors import Fatal, LogReplaced, Transient
from shared.process.retry import backoff_seconds, persist
from shared.process.supervisor import Supervisor


async def _for_ever(name: str, ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


async def _raise(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError("bug"), 1), (Fatal("no"), 3), (LogReplaced("other log"), 3), (Transient("away"), 1)]
)
async def test_a_task_that_fails_ends_the_process(error: Exception, code: int) -> None:
    ended: list[str] = []
    async with AsyncExitStack() as stack:
        supervisor = Supervisor(stack)
        supervisor.add("work", _for_ever("work", ended))
        supervisor.add("broken", _raise(error))
        assert await supervisor.run() == code
    assert ended == ["work"]


async def test_a_task_that_merely_returns_ends_the_process_too() -> None:
    """An HTTP server that stopped serving, a loop that broke out: half a process is worse than none."""
    async with AsyncExitStack() as stack:
        supervisor = Supervisor(stack)
        supervisor.add("done", asyncio.sleep(0))
        assert await supervisor.run() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_is_an_orderly_end(number: signal.Signals) -> None:
    ended: list[str] = []
    async with AsyncExitStack() as stack:
        supervisor = Supervisor(stack)
        supervisor.add("work", _for_ever("work", ended))
        asyncio.get_running_loop().call_later(0.02, os.kill, os.getpid(), number)
        assert await supervisor.run() == 0
    assert ended == ["work"]


async def test_the_end_is_the_reverse_of_the_beginning() -> None:
    """What is opened later uses what was opened earlier; closing in any other order pulls the floor away."""
    ended: list[str] = []
    async with AsyncExitStack() as stack:
        stack.callback(ended.append, "pool")
        stack.callback(ended.append, "sender")
        supervisor = Supervisor(stack)
        for name in ("http", "relay", "pipeline"):
            supervisor.add(name, _for_ever(name, ended))
        asyncio.get_running_loop().call_later(0.01, supervisor.stop)
        assert await supervisor.run() == 0
        assert ended == ["pipeline", "relay", "http", "sender", "pool"]


async def test_what_does_not_end_in_time_is_left() -> None:
    """The broker may be away for good: leaving the group must not keep the process alive."""
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with AsyncExitStack() as stack:
        supervisor = Supervisor(stack, stop_seconds=0.05)
        supervisor.add("stubborn", stubborn())
        asyncio.get_running_loop().call_later(0.01, supervisor.stop)
        asyncio.get_running_loop().call_later(0.4, release.set)
        assert await supervisor.run() == 1


async def test_transient_failures_are_tried_again_and_others_are_not() -> None:
    told: list[tuple[str, int]] = []
    answers: list[Exception | str] = [Transient("one"), Transient("two"), "done"]

    async def work() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await persist(work, lambda error, n: told.append((str(error), n))) == "done"
    assert told == [("one", 0), ("two", 1)]
    answers.append(ValueError("bug"))
    with pytest.raises(ValueError, match="bug"):
        await persist(work, lambda *_: None)


def test_waits_grow_to_a_bound_and_differ() -> None:
    for attempt in range(40):
        wait = backoff_seconds(attempt)
        assert 0.5 * min(5.0, 0.1 * 2**attempt) <= wait <= 5.0
    assert len({backoff_seconds(3) for _ in range(50)}) > 10
