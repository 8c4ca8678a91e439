"""How a long-running command says what it is doing: one moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console
from rich.status import Status

from shared.process.clock import monotonic

PLAIN_SECONDS = 3.0
"""How often a moving line becomes a plain one where nobody watches."""


class Progress:
    """Lines that stay (`say`) and one that moves (`now`), on stderr unless told otherwise."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._status: Status | None = None
        self._plain_at = 0.0

    def say(self, text: str) -> None:
        self._console.print(f"· {text}")

    def now(self, text: str) -> None:
        if self._console.is_terminal:
            if self._status is None:
                self._status = self._console.status("", spinner="line")
                self._status.start()
            self._status.update(text)
        elif monotonic() - self._plain_at >= PLAIN_SECONDS:
            self._plain_at = monotonic()
            self.say(text)

    def rest(self) -> None:
        """Nothing moves any more."""
        if self._status is not None:
            self._status.stop()
            self._status = None
