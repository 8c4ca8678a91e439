"""How the services run beside each other: each a process, started again when it ends unasked, stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from services.local.program import Program

Say = Callable[[str], None]

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
SETTLED_SECONDS = 20.0
"""A process that lived this long starts again without a longer pause."""


def pause_seconds(attempt: int, longest: float = LONGEST_PAUSE_SECONDS) -> float:
    """How long to wait before the `attempt`-th start in a row (from 0)."""
    return float(min(FIRST_PAUSE_SECONDS * 2**attempt, longest))


class Children:
    """The services, in the order they stop; they start in reverse.

    That is the order of the road: what sends stops before what receives, so that the last events still arrive.
    `changed` is called after every start and end, `mourn` with the pid of a process that ended unasked.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        env: Mapping[str, str],
        logs: Path,
        say: Say,
        changed: Callable[[], None] = lambda: None,
        mourn: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self._programs = {
            name: Program(name, argv, log=logs / f"{name}.log", env=env) for name, argv in commands.items()
        }
        self._say = say
        self._changed = changed
        self._mourn = mourn
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self.restarts = dict.fromkeys(commands, 0)
        self.longest_pause_seconds = LONGEST_PAUSE_SECONDS

    def pids(self) -> dict[str, int | None]:
        return {name: program.pid for name, program in self._programs.items()}

    def program(self, name: str) -> Program:
        return self._programs[name]

    async def start(self, names: Sequence[str] | None = None) -> None:
        for name in reversed([n for n in self._programs if names is None or n in names]):
            program = self._programs[name]
            await program.start()
            self._keepers[name] = asyncio.create_task(self._keep(program), name=f"keep-{name}")
        self._changed()

    async def stop(self, seconds: float = 12.0, names: Sequence[str] | None = None) -> None:
        """One after the other, under one deadline; what is left at the deadline is killed."""
        chosen = [name for name in self._programs if names is None or name in names]
        for name in chosen:
            keeper = self._keepers.pop(name, None)
            if keeper is not None:
                keeper.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await keeper
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            for name in chosen:
                left = max(deadline - asyncio.get_running_loop().time(), 0.1)
                if not await self._programs[name].stop(left):
                    self._say(f"{name} did not stop in time and was killed")
        finally:
            for name in chosen:
                self._programs[name].kill()
        self._changed()

    async def _keep(self, program: Program) -> None:
        """Runs until cancelled: whenever the program ends, says so and starts it again."""
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            began, pid = loop.time(), program.pid
            code = await program.wait()
            self._changed()
            attempt = 0 if loop.time() - began > SETTLED_SECONDS else attempt
            pause = pause_seconds(attempt, self.longest_pause_seconds)
            attempt += 1
            self.restarts[program.name] += 1
            last = program.last_words(1)
            self._say(
                f"{program.name} ended ({ending(code)}); starting it again in {pause:g} s"
                + (f" — {last}" if last else "")
            )
            if self._mourn is not None and pid is not None:
                await self._mourn(pid)
            await asyncio.sleep(pause)
            await program.start()
            self._changed()


def ending(code: int) -> str:
    """An exit code in words."""
    return f"killed by signal {-code}" if code < 0 else f"exit {code}"
