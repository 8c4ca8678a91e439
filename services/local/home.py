"""What a home holds, who may use it, and which ports its processes take."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.local.program import LocalError

OFFSETS = {"gateway": 0, "segmenter": 1, "notifier": 2, "ingest": 3, "archive": 4, "sandbox": 10, "kafka": 20}
"""Port of each process, counted from `--port`."""


class Home:
    """`--home`: data, logs, keys and `status.json` of one installation on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.logs = self.path / "logs"
        self.status_file = self.path / "status.json"
        self.keys_file = self.path / "keys.json"
        self.clock_file = self.path / "clock.json"
        self.fcm_account_file = self.path / "fcm-account.json"
        self._lock_file = self.path / "lock"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the home and holds it until the end; LocalError while another process does."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.logs.mkdir(exist_ok=True)
            held = self._lock_file.open("a+")
        except OSError as error:
            raise LocalError(f"cannot write to {self.path} ({error.strerror}); choose another --home") from error
        with held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                held.seek(0)
                pid = held.read().strip() or "unknown"
                message = f"{self.path} is in use by process {pid}; stop that one (Ctrl-C) or choose another --home"
                raise LocalError(message) from None
            held.truncate(0)
            held.write(str(os.getpid()))
            held.flush()
            yield

    def in_use(self) -> bool:
        """Whether a process holds the lock."""
        try:
            with self._lock_file.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def write_status(self, status: dict[str, Any]) -> None:
        """Replaced whole, so that a reader sees one state; it holds keys, so it is its owner's alone."""
        half = self.status_file.with_suffix(".tmp")
        half.unlink(missing_ok=True)
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            json.dump(status, out, indent=2)
        half.replace(self.status_file)

    def clear_status(self) -> None:
        self.status_file.unlink(missing_ok=True)

    def read_status(self) -> dict[str, Any]:
        """What `up` or `demo` last wrote; LocalError when nothing runs here."""
        if not self.in_use():
            raise LocalError(
                f"nothing runs in {self.path}; start it with `perennial up` or `perennial demo`, or name --home"
            )
        try:
            status: dict[str, Any] = json.loads(self.status_file.read_text())
        except (OSError, ValueError):
            raise LocalError(f"{self.path} is still starting; try again in a moment") from None
        return status


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise
        except OSError:
            return False
    return True


def check_ports(base: int, wanted: list[str], bind: str = "127.0.0.1") -> None:
    """LocalError naming every port that cannot be had, whose it would be, and the option that moves them all."""
    if not 1 <= base <= 65_535 - max(OFFSETS.values()) - 1:
        raise LocalError(f"--port {base} is out of range: choose one between 1024 and 65000")
    busy = []
    for name in wanted:
        port = base + OFFSETS[name]
        try:
            if not is_free(port, bind if name != "kafka" else "127.0.0.1"):
                busy.append(f"{port} ({name})")
        except PermissionError:
            raise LocalError(f"port {port} ({name}) needs more rights; choose a --port of 1024 or more") from None
    if busy:
        noun = "port" if len(busy) == 1 else "ports"
        raise LocalError(
            f"{noun} {', '.join(busy)} already in use: end the program that holds it, or choose others with --port N "
            f"(N to N+3, N+10 and N+20 are used; N is {base} now)"
        )
