"""How one program is started, watched and ended on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launch.py")
LOG_LIMIT_BYTES = 20_000_000
"""A log greater than this is put aside at the next start; one older one is kept."""


class LocalError(Exception):
    """Something about this machine is in the way; the text is one sentence that says what to do."""


@dataclass(frozen=True)
class Account:
    """The user a program runs as, where that is not the user who started us."""

    uid: int
    gid: int


class Program:
    """One child process, in a session of its own so that a Ctrl-C reaches only its parent.

    `death_signal` is what the kernel (Linux) sends it when its parent ends, however that ends.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        account: Account | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
        stop_signal: signal.Signals = signal.SIGTERM,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self.env = dict(os.environ if env is None else env)
        self.account = account
        self.death_signal = death_signal
        self.stop_signal = stop_signal
        self.cwd = cwd
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def exit_code(self) -> int | None:
        """The exit code of the last process, None while it runs (or before the first start)."""
        return self._process.returncode if self._process is not None else None

    async def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        account = self.account or Account(-1, -1)
        with self.log.open("ab") as out:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                str(LAUNCHER),
                *(str(number) for number in (os.getpid(), int(self.death_signal), account.uid, account.gid)),
                *self.argv,
                env=self.env,
                cwd=self.cwd,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    async def wait(self) -> int:
        """Waits for the end; returns the exit code (negative: the signal)."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return await self._process.wait()

    async def stop(self, timeout_seconds: float = 10.0) -> bool:
        """Ends it: its stop signal, and after the time allowed SIGKILL. False if it had to be killed."""
        process = self._process
        if process is None or process.returncode is not None:
            return True
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(self.stop_signal)
        try:
            async with asyncio.timeout(timeout_seconds):
                await process.wait()
                return True
        except TimeoutError:
            return False
        finally:
            # Reached by a cancellation as well: whatever interrupts a stop, nothing may stay behind.
            if process.returncode is None:
                self.kill()
                await process.wait()

    def kill(self) -> None:
        """SIGKILL to its whole session."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def last_words(self, lines: int = 5) -> str:
        """The end of its log, for an error message."""
        try:
            text = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return " | ".join(message_of(line) for line in text[-lines:])


def message_of(line: str) -> str:
    """The message of a line of JSON log, any other line as it is."""
    try:
        record = json.loads(line)
    except ValueError:
        return line.strip()
    return str(record.get("message", line)) if isinstance(record, dict) else line
