"""How much processor time and memory processes take, as Linux tells it under /proc. Elsewhere nothing is known."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_PROC = Path("/proc")
_TICK = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Mapping[str, int | None]) -> dict[str, float]:
    """Seconds used so far by each process and all that descend from it, those that ended included."""
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    for entry in _PROC.glob("[0-9]*"):
        try:
            # the name in brackets may hold anything
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parents[int(entry.name)] = int(fields[1])
        spent[int(entry.name)] = sum(map(int, fields[11:15])) * _TICK
    found = {name: 0.0 for name, pid in pids.items() if pid in spent}
    roots = {pid: name for name, pid in pids.items() if pid in spent}
    for pid, seconds in spent.items():
        above = pid
        while above not in roots and above in parents:
            above = parents[above]
        if above in roots:
            found[roots[above]] += seconds
    return found


def resident_mb(pid: int | None) -> float | None:
    """Memory a process holds now, in millions of bytes; None where that is not known."""
    try:
        pages = int((_PROC / str(pid) / "statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
