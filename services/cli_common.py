"""What every command shares: where the home is, how failures are told, how coroutines are run."""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import asyncpg
import typer

from services.local import interrupt
from services.local.database import connected
from services.local.home import Home
from services.local.program import LocalError
from shared.contracts.topics import Names
from shared.data.control import installation
from shared.process.clock import parse_instant
from shared.process.errors import Fatal, Transient

if TYPE_CHECKING:
    from services.archive.folder import Folder
    from shared.kafka.log_reader import LogReader

P = ParamSpec("P")
T = TypeVar("T")

HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="PERENNIAL_HOME", help="Folder of data, logs and status.json.", show_default=True),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ArchiveOption = Annotated[
    Path | None,
    typer.Option("--archive", envvar="PERENNIAL_ARCHIVE_PATH", help="Folder of the archive.", show_default=False),
]
FromOption = Annotated[str, typer.Option("--from", metavar="INSTANT", help="Received from then on.")]
ToOption = Annotated[str, typer.Option("--to", metavar="INSTANT", help="Received before then.")]
DEFAULT_HOME = Path(".perennial")


def say(message: str) -> None:
    """A line of progress; on stderr, so that results can be piped."""
    typer.echo(f"· {message}", err=True)


def instant(text: str, otherwise: int) -> int:
    """Milliseconds; `otherwise` where no text was given."""
    try:
        return parse_instant(text) if text else otherwise
    except (ValueError, OverflowError) as error:
        raise LocalError(f"{text!r} is no instant; write for example 2026-01-31T00:00:00Z") from error


def command(work: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, None]:
    """A coroutine as a command: what is in the way is one sentence on stderr and exit code 1.

    A coroutine that returns a number ends the command with that exit code.
    """

    @functools.wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = interrupt.run(work(*args, **kwargs))
        except interrupt.Interrupted:
            raise typer.Exit(0) from None
        except (LocalError, Transient, Fatal) as error:
            typer.echo(f"perennial: {error}", err=True)
            raise typer.Exit(1) from None
        if isinstance(code, int) and code:
            raise typer.Exit(code)

    return run


class Target:
    """The installation a command works on: the running home's, or the one the environment names."""

    def __init__(self, home: Path) -> None:
        self.home = Home(home)
        try:
            status = self.home.read_status()
        except LocalError:
            dsn = os.environ.get("PERENNIAL_POSTGRES")
            if not dsn:
                raise
            status = {
                "postgres": dsn,
                "kafka": os.environ.get("PERENNIAL_KAFKA", ""),
                "prefix": os.environ.get("PERENNIAL_PREFIX", ""),
                "shards": int(os.environ.get("PERENNIAL_SHARDS", "32")),
            }
        self.status = status
        self.dsn = str(status["postgres"])
        self.kafka = str(status["kafka"])
        self.names = Names(str(status.get("prefix", "")))
        self.shards = int(status.get("shards", 32))

    @asynccontextmanager
    async def log(self) -> AsyncIterator[LogReader]:
        """A reader of the installation's topics."""
        from shared.kafka.log_reader import LogReader

        reader = LogReader(self.kafka)
        await reader.start()
        try:
            yield reader
        finally:
            await reader.stop()

    async def archive(self, path: Path | None) -> Folder:
        """The archive of the installation's log; LocalError where there is none."""
        from services.archive.folder import Folder

        if path is None:
            raise LocalError("name the archive's folder: --archive, or PERENNIAL_ARCHIVE_PATH")
        async with self.database() as connection:
            log_id = (await installation(connection)).log_id
        folder = Folder(path, log_id)
        if not folder.log.is_dir():
            raise LocalError(f"{path} holds no archive of this installation's log {log_id}")
        return folder

    @asynccontextmanager
    async def database(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """A connection; LocalError where the schema is missing as well."""
        async with connected(self.dsn) as connection:
            try:
                yield connection
            except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError) as error:
                raise LocalError(f"the database lacks a table ({error}); run `perennial migrate`") from error
