"""What time it is: the product's time (which a file can move) and the machine's.

The only module that reads the system's clock.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

_REREAD_SECONDS = 0.1


@lru_cache(4096)
def iso(ms: int) -> str:
    """RFC 3339 in UTC with milliseconds. Remembered, for the rows of a batch share their moments."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso_or_none(ms: int | None) -> str | None:
    return None if ms is None or ms < 0 else iso(ms)


def parse_instant(text: str) -> int:
    """Milliseconds of an RFC 3339 instant; one without an offset counts as UTC. ValueError otherwise."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def month_of(ms: int) -> str:
    """`yymm` of an instant, in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%y%m")


class Clock:
    """Product time. `path` names a file {real, virtual, rate}: product time was `virtual` when real
    time was `real`, and runs `rate` times as fast since. Without a file it is real time.

    It never goes back within a process, whatever the file says.
    """

    def __init__(self, path: str = "") -> None:
        self._path = Path(path) if path else None
        self._real = self._virtual = 0
        self._rate = 1.0
        self._read_at = -1.0
        self._latest = 0

    def real_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def now_ms(self) -> int:
        if self._path is None:
            return self.real_ms()
        if time.monotonic() - self._read_at > _REREAD_SECONDS:
            self._reread()
        now = int(self._virtual + (self.real_ms() - self._real) * self._rate)
        self._latest = max(self._latest, now)
        return self._latest

    def _reread(self) -> None:
        assert self._path is not None
        self._read_at = time.monotonic()
        try:
            told = json.loads(self._path.read_text())
            self._real, self._virtual, self._rate = int(told["real"]), int(told["virtual"]), float(told["rate"])
        except (OSError, ValueError, KeyError, TypeError):
            if self._virtual == 0:
                self._real = self._virtual = self.real_ms()


def write_clock(path: Path, virtual_ms: int, rate: float = 1.0) -> None:
    """Move product time to `virtual_ms` from now on. ValueError if that lies in its past."""
    now = Clock(str(path)).now_ms() if path.exists() else 0
    if virtual_ms < now:
        raise ValueError(f"time only moves forward: it is {iso(now)} already")
    real = time.time_ns() // 1_000_000
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"real": real, "virtual": virtual_ms, "rate": rate}))
    temporary.replace(path)


def monotonic() -> float:
    """Seconds on a clock that only goes forward; for timeouts and latencies."""
    return time.monotonic()
