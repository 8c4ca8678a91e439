"""`perennial erase`, `export` and `suppressed …`: what a person may ask of what is kept of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import typer

from services.cli_common import DEFAULT_HOME, HomeOption, JsonOption, Target, command, say
from services.ingest.domain.intake import RequestKind
from services.ingest.privacy import requests
from services.ingest.privacy.requests import Send
from services.local.program import LocalError
from services.notifier import exporting as notifier_exporting
from services.segmenter import erasing
from services.segmenter import exporting as segmenter_exporting
from shared.contracts.topics import Topic
from shared.gazetteer import load as load_gazetteer
from shared.kafka.records import InRecord
from shared.kafka.sender import Record, Sender
from shared.process.clock import Clock

suppressed = typer.Typer(help="Erased users, of whom nothing is taken in.", no_args_is_help=True)

UserArgument = Annotated[str, typer.Argument(help="The user's id, as the app posts it.")]
_LOOK_SECONDS = 0.3


def register(app: typer.Typer) -> None:
    app.command("erase")(erase)
    app.command("export")(export)
    app.add_typer(suppressed, name="suppressed")


@command
async def erase(
    user: UserArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether it is meant.")] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Erase all that is kept of a user, and take in nothing more of them.

    The services do it; Ctrl-C only stops watching. What topics and archives hold goes with their retention.
    """
    if not yes:
        typer.confirm("This cannot be undone. Erase the user?", abort=True, err=True)
    progress = await _asked(Target(home), "erase", user)
    typer.echo(json.dumps(progress, indent=2) if as_json else f"erased ({progress['erasure_id']})")


@command
async def export(user: UserArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Print everything that is kept of a user, by all services, as JSON."""
    target = Target(home)
    async with target.log() as reader, target.database() as connection:

        async def read_raw(partition: int, offset: int) -> InRecord | None:
            return (await reader.at(target.names.topic(Topic.RAW), {partition: offset}))[partition]

        parts = {
            "segmenter": await segmenter_exporting.export(connection, read_raw, load_gazetteer(), target.shards, user),
            "notifier": await notifier_exporting.export(connection, target.shards, user),
        }
    typer.echo(json.dumps({"user_id": user, **parts}, indent=2, ensure_ascii=False))


@suppressed.command("count")
@command
async def count(home: HomeOption = DEFAULT_HOME) -> None:
    """Count the erased users of whom nothing is taken in; only hashes of their ids are kept."""
    async with Target(home).database() as connection:
        typer.echo(str(await connection.fetchval("SELECT count(*) FROM segmenter.suppressed")))


@suppressed.command("check")
@command
async def check(user: UserArgument, home: HomeOption = DEFAULT_HOME) -> int:
    """Say whether nothing is taken in of this user: exit code 0 if so, 1 if not."""
    target = Target(home)
    async with target.database() as connection:
        found = await erasing.is_suppressed(connection, target.shards, user)
    typer.echo("suppressed" if found else "not suppressed")
    return 0 if found else 1


@suppressed.command("remove")
@command
async def remove(user: UserArgument, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Take in events of an erased user again, as of somebody new."""
    progress = await _asked(Target(home), "readmit", user)
    typer.echo(json.dumps(progress, indent=2) if as_json else f"taken in again ({progress['erasure_id']})")


async def _asked(target: Target, kind: RequestKind, user: str) -> dict[str, Any]:
    """How the request ended, having waited for that."""
    if wrong := requests.check(user):
        raise LocalError(wrong)
    clock = Clock(str(target.home.clock_file)) if target.home.clock_file.exists() else Clock()
    async with target.database() as connection:
        async with _raw(target) as send:
            erasure_id = await requests.ask(connection, send, kind, user, target.shards, clock.now_ms())
        say(f"{kind} is asked for: {erasure_id}")
        before = ""
        while True:
            progress = await requests.told(connection, erasure_id)
            assert progress is not None
            if progress["state"] != before:
                before = progress["state"]
                say(before)
            if before == "done":
                return progress
            await asyncio.sleep(_LOOK_SECONDS)


@asynccontextmanager
async def _raw(target: Target) -> AsyncIterator[Send]:
    """How a record gets into a partition of the installation's raw topic."""
    sender = Sender(target.kafka)
    await sender.start()

    async def send(shard: int, record: Record) -> None:
        await sender.send(target.names.topic(Topic.RAW), shard, [record])

    try:
        yield send
    finally:
        await sender.stop()
