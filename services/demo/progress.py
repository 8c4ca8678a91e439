"""How a long-running command says what it is doing: a moving display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from shared.process.clock import monotonic

PLAIN_SECONDS = 3.0
"""How often what moves becomes a plain line where nobody watches."""


class Progress:
    """Lines that stay (`say`) and a display that moves (`now`), on stderr unless told otherwise."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._live: Live | None = None
        self._spinner = Spinner("line", "")
        self._plain_at = 0.0

    def say(self, text: str) -> None:
        self._console.print(f"· {text}")

    def now(self, doing: str, figures: Mapping[str, str]) -> None:
        """What is being done, and figures by name; on a terminal they take the place of those told before."""
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, transient=True, refresh_per_second=8)
                self._live.start()
            self._spinner.update(text=doing)
            table = Table.grid(padding=(0, 2))
            for name, figure in figures.items():
                table.add_row(f"  {name}", figure)
            self._live.update(Group(self._spinner, table))
        elif monotonic() - self._plain_at >= PLAIN_SECONDS:
            self._plain_at = monotonic()
            self.say(f"{doing}: " + "; ".join(f"{name} {figure}" for name, figure in figures.items() if figure))

    def rest(self) -> None:
        """Nothing moves any more."""
        if self._live is not None:
            self._live.stop()
            self._live = None
