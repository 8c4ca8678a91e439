"""`perennial dlq …`: events that were refused, and how they come in again once their rules were mended."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer

from services.cli_common import (
    DEFAULT_HOME,
    FromOption,
    HomeOption,
    JsonOption,
    Target,
    ToOption,
    command,
    instant,
    say,
)
from services.ingest.letters import listing, requests
from services.ingest.letters.api import told
from services.ingest.letters.listing import FAR_MS, Matching
from services.ingest.letters.requests import Asked
from services.local.program import LocalError
from shared.contracts.topics import Topic

dlq = typer.Typer(help="Dead letters: events that were refused, with their reasons.", no_args_is_help=True)

ReasonOption = Annotated[str, typer.Option(help="Only reasons that begin so.")]
UserOption = Annotated[str, typer.Option(help="Only this user's.")]
SourceOption = Annotated[str, typer.Option(help="Only this source's: whose write key it was.")]

_LOOK_SECONDS = 0.5


def register(app: typer.Typer) -> None:
    app.add_typer(dlq, name="dlq")


@dlq.command("list")
@command
async def list_letters(
    reason: ReasonOption = "",
    user: UserOption = "",
    source: SourceOption = "",
    since: FromOption = "",
    until: ToOption = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """List refused events, newest first."""
    which = matching(reason, user, source, since, until)
    async with Target(home).database() as connection:
        letters, following = await listing.newest(connection, which, limit)
    if as_json:
        typer.echo(json.dumps({"items": letters, "next": following}, indent=2))
        return
    for letter in letters:
        where = f"raw {letter['raw']['partition']}/{letter['raw']['offset']}"
        note = " (replayed)" if letter["replayed_by"] else " (a replay)" if letter["replay"] else ""
        typer.echo(f"{letter['recorded_at']}  {where:<14} {letter['reason']:<32} {letter['user_id']}{note}")
    if not letters:
        typer.echo("no event was refused")


@dlq.command("stats")
@command
async def count_letters(
    reason: ReasonOption = "",
    user: UserOption = "",
    source: SourceOption = "",
    since: FromOption = "",
    until: ToOption = "",
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Count refused events by day, source and reason."""
    which = matching(reason, user, source, since, until)
    async with Target(home).database() as connection:
        found = await listing.counts(connection, which)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for item in found["items"]:
        replays = f" ({item['replays']} of them replays)" if item["replays"] else ""
        typer.echo(f"{item['day']}  {item['source']:<20} {item['reason']:<24} {item['letters']:>9}{replays}")
    typer.echo(f"{found['letters']} events were refused" if found["letters"] else "no event was refused")


@dlq.command("show")
@command
async def show_letter(
    partition: Annotated[int, typer.Argument(min=0, help="Partition of the raw topic, from `dlq list`.")],
    offset: Annotated[int, typer.Argument(min=0, help="Offset in it.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Show one raw event, with its values masked."""
    target = Target(home)
    async with target.log() as reader:
        topic = target.names.topic(Topic.RAW)
        if partition >= await reader.partitions(topic):
            raise LocalError(f"{topic} has no partition {partition}")
        record = (await reader.at(topic, {partition: offset}))[partition]
    if record is None:
        raise LocalError(f"{topic} {partition} holds no record {offset} (any more)")
    typer.echo(json.dumps(told(record.headers, record.value), indent=2))


@dlq.command("replay")
@command
async def replay_letters(
    raw: Annotated[
        list[str] | None, typer.Argument(help="Addresses PARTITION/OFFSET of `dlq list`; none: all.")
    ] = None,
    reason: ReasonOption = "",
    user: UserOption = "",
    source: SourceOption = "",
    event: Annotated[str, typer.Option(help="Only events of this name.")] = "",
    since: FromOption = "",
    until: ToOption = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be accepted today.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also those that today's rules refuse as well.")] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Put refused events into raw again, with the time and the message id they had: those that today's rules accept.

    Ingest does it; Ctrl-C only stops watching it. What was replayed once is not replayed again.
    """
    which = matching(reason, user, source, since, until)
    asked = Asked(
        which.reason, which.user, which.source, which.since, which.until, event, tuple(raw or ()), dry_run, force
    )
    if wrong := requests.check(asked):
        raise LocalError(wrong)
    async with Target(home).database() as connection:
        replay_id = await requests.ask(connection, asked)
        say(f"replay {replay_id}; `perennial dlq cancel {replay_id}` calls it off")
        before = ""
        while True:
            [progress] = await requests.told(connection, replay_id)
            if (line := progress_line(progress)) != before:
                say(line)
                before = line
            if progress["finished_at"]:
                break
            await asyncio.sleep(_LOOK_SECONDS)
    typer.echo(json.dumps(progress, indent=2) if as_json else result_line(progress))


@dlq.command("replays")
@command
async def list_replays(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """List replays, newest first."""
    async with Target(home).database() as connection:
        found = await requests.told(connection)
    if as_json:
        typer.echo(json.dumps({"items": found, "next": None}, indent=2))
        return
    for progress in found:
        typer.echo(f"{progress['replay_id']}  {progress['requested_at']}  {progress_line(progress)}")


@dlq.command("cancel")
@command
async def cancel_replay(
    replay_id: Annotated[str, typer.Argument(help="Its id, from `dlq replays`.")], home: HomeOption = DEFAULT_HOME
) -> None:
    """Call a replay off; what was sent stays sent."""
    async with Target(home).database() as connection:
        if not await requests.cancel(connection, replay_id):
            raise LocalError(f"there is no replay {replay_id!r} under way; see `perennial dlq replays`")
    typer.echo(f"{replay_id}: cancelled")


def matching(reason: str, user: str, source: str, since: str, until: str) -> Matching:
    return Matching(reason, user, source, instant(since, 0), instant(until, FAR_MS))


def progress_line(progress: dict[str, Any]) -> str:
    shards = progress["shards"]
    return f"{progress['state']}, {shards['done']} of {shards['of']} shards: {result_line(progress)}"


def result_line(progress: dict[str, Any]) -> str:
    sent = "would be sent" if progress["asked"].get("dry_run") else "sent"
    told = f"{progress['sent']} {sent}, {progress['refused_still']} refused by today's rules as well"
    return f"{told}, {progress['replayed_before']} replayed before, {progress['gone']} gone from raw"
