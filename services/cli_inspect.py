"""Commands that follow what happened: one user's road, lost records, a restored or lost database."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from services.cli_common import DEFAULT_HOME, ArchiveOption, HomeOption, JsonOption, Target, command, say
from services.local import trail
from services.local.program import LocalError
from shared.contracts.identifiers import shard_of
from shared.contracts.topics import SPECS, Topic


def register(app: typer.Typer) -> None:
    app.command("follow")(follow)
    app.command("repair")(repair)
    app.command("restore")(restore)
    app.command("rebuild")(rebuild)


@command
async def follow(
    user: Annotated[str, typer.Argument(help="The user's id, as the app posts it.")],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show where everything about a user came from: messages, ledger rows, raw events."""
    target = Target(home)
    async with target.database() as connection:
        road = await trail.road(connection, user, shard_of(user, target.shards))
    if as_json:
        typer.echo(json.dumps(road, indent=2))
        return
    for line in trail.lines(road, target.names.topic(Topic.RAW), target.names.topic(Topic.CONTEXT)):
        typer.echo(line)


@command
async def repair(
    topic: Annotated[str, typer.Option(help="Topic with the gap, for example app.events.v1.")],
    shard: Annotated[int, typer.Option(min=0, help="Partition with the gap.")],
    after: Annotated[int, typer.Option(min=-1, help="Last number the reader has: the gap begins behind it.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Ask the owner of a shard to emit again all that follows a number."""
    target = Target(home)
    known = sorted(str(spec.topic) for spec in SPECS)
    if topic not in known:
        raise LocalError(f"there is no topic {topic!r}; the topics are {', '.join(known)}")
    if shard >= target.shards:
        raise LocalError(f"there is no shard {shard}; this installation has 0 to {target.shards - 1}")
    async with target.database() as connection:
        await connection.execute(
            "INSERT INTO control.repair (topic, shard, after) VALUES ($1, $2, $3) ON CONFLICT (topic, shard) "
            "DO UPDATE SET after = excluded.after, requested_at = now(), done_at = NULL",
            topic,
            shard,
            after,
        )
    typer.echo(f"the owner of {topic} {shard} will emit again from {after + 1}")


@command
async def restore(home: HomeOption = DEFAULT_HOME) -> None:
    """After the database was restored to an older state, before the services start: put back the messages sent since
    then, and number on behind what readers have already seen."""
    from services.local import restoring

    target = Target(home)
    async with target.log() as reader, target.database() as connection:
        if await restoring.running(connection):
            say("services are running: what they planned on the old state may have been sent again; stop them first")
        raised = await restoring.restore(connection, reader, target.names, target.shards, say)
    for line in raised or ["no shard has an owner yet: there is nothing to restore"]:
        typer.echo(line)


class What(StrEnum):
    """What `rebuild` makes anew."""

    RECIPIENTS = "recipients"
    USERS = "users"


@command
async def rebuild(
    what: Annotated[What, typer.Argument(help="recipients (the notifier's) or users (the segmenter's).")] = (
        What.RECIPIENTS
    ),
    first: Annotated[int, typer.Option("--from", min=0, help="First shard: go on where an interrupted run ended.")] = 0,
    only: Annotated[int | None, typer.Option("--shard", min=0, help="This shard alone.")] = None,
    archive: ArchiveOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Users: keep nothing of it, and say what would be otherwise than it is.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
) -> int:
    """Make rows anew that were lost or are wrong.

    recipients: from the segmenter's users, where the feed has lost what they consist of. The notifier may run; it goes
    on behind the last change copied. Changes it had not read until then push to nobody.

    users: states, cohorts and counts, from the archive and what the topic still has. No segmenter may run. Nobody is
    told anything again.
    """
    target = Target(home)
    shards = [only] if only is not None else list(range(first, target.shards))
    if not shards or shards[-1] >= target.shards:
        raise LocalError(f"this installation has the shards 0 to {target.shards - 1}")
    async with target.log() as reader:
        if what is What.RECIPIENTS:
            if check:
                raise LocalError("--check goes with `perennial rebuild users`")
            from services.local import rebuilding

            await rebuilding.rebuild(target.dsn, reader, target.names, shards, say)
        else:
            from services.local import refolding

            folder = await target.archive(archive) if archive is not None else None
            found = await refolding.rebuild(
                target.dsn, target.kafka, reader, target.names, shards, folder, say, check=check
            )
            if check:
                wrong = sum(map(bool, found))
                typer.echo(f"checked: {len(shards)} of {target.shards} shards, {wrong} would be otherwise")
                return 1 if wrong else 0
    typer.echo(f"rebuilt: {len(shards)} of {target.shards} shards")
    return 0
