"""Which ports a test may take: free ones, in blocks as one installation uses them."""

from __future__ import annotations

import itertools
import os

from services.local.home import OFFSETS, is_free

_OFFSETS = {*OFFSETS.values(), OFFSETS["kafka"] + 1}
# Below the range from which the system gives ports to clients; every test process begins elsewhere.
_BASES = itertools.cycle(range(12_000 + os.getpid() % 160 * 100, 32_000, 50))


def free_base() -> int:
    """A value for `--port` whose whole block is free now."""
    for _ in range(500):
        base = next(_BASES)
        if all(is_free(base + offset) for offset in _OFFSETS):
            return base
    raise RuntimeError("no block of free ports was found")


def free_port() -> int:
    return free_base() + OFFSETS["kafka"]
