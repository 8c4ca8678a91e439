"""Commands about the archive of the log: what it holds, and whether that is whole."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from services.cli_common import DEFAULT_HOME, ArchiveOption, HomeOption, Target, command, say

archive_app = typer.Typer(help="Files of the log beyond its retention (PERENNIAL_ARCHIVE_PATH).", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(archive_app, name="archive")
    archive_app.command("list")(list_)
    archive_app.command("verify")(verify)
    archive_app.command("scrub")(scrub)


@command
async def list_(archive: ArchiveOption = None, home: HomeOption = DEFAULT_HOME) -> None:
    """Show, for each partition, which offsets are archived and how many wait."""
    target = Target(home)
    folder = await target.archive(archive)
    table = Table("topic", "partition", "files", "from", "to", "bytes", "waiting")
    async with target.log() as reader:
        for topic in folder.topics():
            partitions = folder.partitions(topic)
            ends = await reader.ends(topic, partitions) if await reader.partitions(topic) else {}
            for partition in partitions:
                files = folder.files(topic, partition)
                behind = files[-1].last + 1 if files else 0
                waiting = str(max(0, ends[partition] - behind)) if partition in ends else ""
                size = sum(file.path.stat().st_size for file in files)
                first = str(files[0].first) if files else ""
                table.add_row(topic, str(partition), str(len(files)), first, str(behind - 1), f"{size:,}", waiting)
    Console().print(table)


@command
async def verify(
    archive: ArchiveOption = None,
    topic: Annotated[str, typer.Option(help="This topic alone, by its folder's name.")] = "",
    home: HomeOption = DEFAULT_HOME,
) -> int:
    """Read every file: is each whole, does one follow the other, and is none missing? Exit code 1 where not."""
    from services.local import verifying

    folder = await Target(home).archive(archive)
    read, problems = verifying.verify(folder, [topic] if topic else folder.topics(), say)
    for problem in problems:
        typer.echo(f"✗ {problem}")
    typer.echo(f"{'✗' if problems else '✓'} {read.files:,} files, {read.records:,} records, {len(problems)} problems")
    return 1 if problems else 0


@command
async def scrub(
    user: Annotated[str, typer.Argument(help="The user's id, as the app posts it.")],
    archive: ArchiveOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Erase a user from the files: their records keep an offset and a digest, and nothing else.

    What the topics still hold is archived after this as it is: scrub again when it has left them.
    """
    from services.local import scrubbing

    target = Target(home)
    found = await scrubbing.scrub(await target.archive(archive), target.names, user, say)
    typer.echo(f"erased: {found.records:,} records in {found.files:,} files")
