"""Commands that set up an installation: schema, definitions, keys, settings, time."""

from __future__ import annotations

import importlib
import json
import os
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from services.cli_common import DEFAULT_HOME, HomeOption, JsonOption, Target, command, say
from services.local import definitions
from services.local import keys as key_store
from services.local.database import connected
from services.local.home import Home
from services.local.program import LocalError
from services.packs import available, diff
from shared.contracts.topics import Names
from shared.data.keys import SCOPES
from shared.process.clock import iso, parse_instant, write_clock

SETTINGS_MODULES = (
    "shared.process.settings:Installation",
    "services.ingest.gateway.settings:GatewaySettings",
    "services.ingest.consumer.settings:Settings",
    "services.segmenter.settings:Settings",
    "services.notifier.settings:Settings",
    "services.archive.settings:Settings",
    "services.demo.sandbox:SandboxSettings",
)

packs = typer.Typer(help="Definitions: what the events mean, stages, segments, campaigns.", no_args_is_help=True)
keys = typer.Typer(help="Write keys (apps post events with them) and admin keys (for the APIs).", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.command("apply")(apply)
    app.command("migrate")(migrate)
    app.command("settings")(settings)
    app.command("tick")(tick)
    app.add_typer(packs, name="packs")
    app.add_typer(keys, name="keys")


@command
async def apply(
    pack: Annotated[list[str], typer.Argument(help="Names of shipped packs, or folders.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Check packs and install them as the newest rules version."""
    async with Target(home).database() as connection:
        for name in pack:
            typer.echo(f"{name}: {await definitions.apply(connection, name)}")


@packs.command("check")
@command
async def check(pack: Annotated[list[str], typer.Argument(help="Names of shipped packs, or folders.")]) -> None:
    """Check packs without installing them."""
    for name in pack:
        rules = definitions.load(name)
        parts = (
            f"{len(rules.stages)} stages, {len(rules.segments)} segments, {len(rules.campaigns)} campaigns, "
            f"{len(rules.tracking_plan.events)} planned events"
        )
        typer.echo(f"{name}: valid ({parts})")


@packs.command("list")
@command
async def list_versions(home: HomeOption = DEFAULT_HOME) -> None:
    """List the installed rules versions, newest first, and the packs that come with the product."""
    async with Target(home).database() as connection:
        for row in await connection.fetch("SELECT version, pack, note, created_at FROM control.rules ORDER BY 1 DESC"):
            typer.echo(f"{row['version']:>4}  {row['pack']:<12} {row['created_at']:%Y-%m-%dT%H:%M:%SZ}  {row['note']}")
    typer.echo(f"shipped: {', '.join(available())}")


@packs.command("diff")
@command
async def show_difference(
    pack: Annotated[str, typer.Argument(help="Name of a shipped pack, or a folder.")], home: HomeOption = DEFAULT_HOME
) -> None:
    """Show what `apply` would change."""
    rules = definitions.load(pack)
    async with Target(home).database() as connection:
        lines = diff(await definitions.version(connection), rules)
    for line in lines or ["nothing would change"]:
        typer.echo(line)


@packs.command("rollback")
@command
async def roll_back(
    version: Annotated[int, typer.Argument(min=1, help="The version to go back to.")], home: HomeOption = DEFAULT_HOME
) -> None:
    """Install an old version's content as the newest version."""
    async with Target(home).database() as connection:
        typer.echo(await definitions.rollback(connection, version))


@keys.command("create")
@command
async def create_key(
    kind: Annotated[Literal["write", "admin"], typer.Argument(help="What the key allows.")],
    source: Annotated[str, typer.Argument(help="Who will use it; named in events and logs.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What an admin key allows: read, write, privacy. Repeatable; by default all.", show_default=False
        ),
    ] = None,
    events_per_second: Annotated[
        int | None, typer.Option(min=1, help="What a write key may post to each gateway.", show_default="no limit")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    scopes = scope or list(SCOPES)
    if wrong := sorted(set(scopes) - set(SCOPES)):
        raise LocalError(f"there is no scope {wrong[0]!r}; the scopes are {', '.join(SCOPES)}")
    if scope and kind == "write":
        raise LocalError("a write key has no scopes: it posts events and nothing else")
    if events_per_second and kind == "admin":
        raise LocalError("only a write key is limited in events a second")
    async with Target(home).database() as connection:
        made = await key_store.create(connection, kind, source, scopes=scopes, events_per_second=events_per_second)
    typer.echo(made)


@keys.command("list")
@command
async def list_keys(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """List the keys by source, and what they were used for; keys themselves are not kept."""
    async with Target(home).database() as connection:
        found = await key_store.listed(connection)
    if as_json:
        typer.echo(json.dumps({"items": [key_store.shown(row) for row in found], "next": None}, indent=2))
        return
    for row in found:
        typer.echo(key_store.line(row))


@keys.command("rotate")
@command
async def rotate_key(
    source: Annotated[str, typer.Argument(help="The source named at its creation.")],
    overlap: Annotated[
        str, typer.Option(help="How long the older key works on: 30m, 24h, 7d; 0 for not at all.")
    ] = "24h",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Make a key that takes an older one's place, and print it, once. Scopes and limit stay as they are."""
    target = Target(home)
    async with target.database() as connection:
        typer.echo(await key_store.rotate(connection, source, key_store.span(overlap), target.home.keys_file))


@keys.command("limit")
@command
async def limit_key(
    source: Annotated[str, typer.Argument(help="The source named at its creation.")],
    events_per_second: Annotated[int, typer.Argument(min=0, help="What it may post to each gateway; 0: no limit.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Bound what the write keys of a source may post; gateways notice within seconds."""
    async with Target(home).database() as connection:
        await key_store.limit(connection, source, events_per_second or None)
    typer.echo(f"{source}: {events_per_second or 'any number of'} events a second")


@keys.command("revoke")
@command
async def revoke_key(
    source: Annotated[str, typer.Argument(help="The source named at its creation.")], home: HomeOption = DEFAULT_HOME
) -> None:
    """Make every key of a source invalid; services notice within seconds."""
    async with Target(home).database() as connection:
        await key_store.revoke(connection, source)
    typer.echo(f"{source}: revoked")


@command
async def migrate(
    postgres: Annotated[str, typer.Option(envvar="PERENNIAL_POSTGRES", help="Address of the database.")] = "",
    kafka: Annotated[str, typer.Option(envvar="PERENNIAL_KAFKA", help="HOST:PORT of the log.")] = "",
    shards: Annotated[int, typer.Option(envvar="PERENNIAL_SHARDS", help="Number of shards; never changes.")] = 32,
    prefix: Annotated[str, typer.Option(envvar="PERENNIAL_PREFIX", help="Prefix of all topics.")] = "",
    copies: Annotated[int, typer.Option(help="Copies of every topic (replication factor).")] = 1,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Make or update schema and topics, on servers of your own. The services must not run."""
    from services.local import migrate as migrations
    from services.local import topics

    if not postgres or not kafka:
        target = Target(home)
        postgres, kafka, prefix, shards = target.dsn, target.kafka, target.names.prefix, target.shards
    say("database schema")
    await migrations.upgrade(postgres)
    say("topics")
    made = await topics.ensure_topics(kafka, Names(prefix), shards, copies)
    async with connected(postgres) as connection:
        change = await migrations.adopt_log(connection, shards, await topics.cluster_id(kafka))
    typer.echo(f"schema is current; topics made: {', '.join(made) or 'none'}; log {change.log_id}")


@command
async def settings() -> None:
    """List every setting: its environment variable, default and meaning."""
    from pydantic_settings import BaseSettings

    console = Console()
    for place in SETTINGS_MODULES:
        module, name = place.split(":")
        try:
            found: type[BaseSettings] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
        table = Table("variable", "default", "meaning", title=module, title_justify="left", expand=False)
        prefix = found.model_config.get("env_prefix", "")
        for field, about in found.model_fields.items():
            variable = f"{prefix}{field}".upper()
            shown = variable + (" (set)" if variable in os.environ else "")
            table.add_row(shown, "required" if about.is_required() else str(about.default), about.description or "")
        console.print(table)
    typer.echo("Each may be given as NAME_FILE: the path of a file that holds the value.")


@command
async def tick(
    to: Annotated[str, typer.Option("--to", metavar="INSTANT", help="For example 2026-02-03T00:00:00Z.")],
    rate: Annotated[float, typer.Option(min=0.0, help="How fast time runs from then on.")] = 1.0,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Move the product's time forward; only where `up --dev` made a clock."""
    clock = Home(home).clock_file
    if not clock.exists():
        raise LocalError(f"{Home(home).path} has no clock of its own; start it with `perennial up --dev`")
    try:
        instant = parse_instant(to)
        write_clock(clock, instant, rate)
    except ValueError as error:
        raise LocalError(f"cannot move time to {to!r}: {error}") from error
    typer.echo(f"it is {iso(instant)} now")
