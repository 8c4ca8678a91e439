"""Which ports a test may take: free ones, in blocks as one installation uses them."""

from __future__ import annotations

import itertools
import os
import socket

from services.local.home import OFFSETS

_OFFSETS = {*OFFSETS.values(), OFFSETS["kafka"] + 1}
# Below the range from which the system gives ports to clients; every test process begins elsewhere.
_BASES = itertools.cycle(range(12_000 + os.getpid() % 160 * 100, 32_000, 50))


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_base() -> int:
    """A value for `--port` whose whole block is free now."""
    for _ in range(500):
        base = next(_BASES)
        if all(is_free(base + offset) for offset in _OFFSETS):
            return base
    raise RuntimeError("no block of free ports was found")


def free_port() -> int:
    return free_base() + OFFSETS["kafka"]
