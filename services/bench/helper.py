"""How the bench's own programs (load, ceilings) are driven: one line of JSON in, one out, until the input ends.

Each is a process of its own, so that it never shares an event loop with what is measured. The first line opens it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from services.local.environment import ROOT
from services.local.program import LocalError

Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
Open = Callable[[AsyncExitStack, dict[str, Any]], Awaitable[Ask]]
_LINE_LIMIT = 1 << 20


def serve(open_: Open) -> None:
    """The child's side: ends with its input, so that it never outlives who started it."""

    async def run() -> None:
        async with AsyncExitStack() as stack:
            ask = await open_(stack, json.loads(await asyncio.to_thread(sys.stdin.readline)))
            _answer({})
            gc.collect()
            gc.freeze()
            while line := await asyncio.to_thread(sys.stdin.readline):
                _answer(await ask(json.loads(line)))

    uvloop.run(run())


def _answer(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


class Helper:
    """The parent's side."""

    def __init__(self, module: str, logs: Path) -> None:
        self._module, self._log = module, logs / f"{module.rpartition('.')[2]}.log"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self, setup: Mapping[str, Any]) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", self._module,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                env=environment, limit=_LINE_LIMIT, start_new_session=True,
            )  # fmt: skip
        await self.ask(setup)

    async def ask(self, what: Mapping[str, Any], seconds: float = 120.0) -> dict[str, Any]:
        """Its answer; LocalError when it ends instead, or takes too long."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        line = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(seconds):
                process.stdin.write(json.dumps(what).encode() + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
        if not line:
            lines = self._log.read_text(errors="replace").strip().splitlines()[-3:]
            raise LocalError(f"{self._module} ended, or took more than {seconds:.0f} s: {' | '.join(lines)}")
        told: dict[str, Any] = json.loads(line)
        return told

    async def stop(self) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
