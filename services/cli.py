"""The command line: `perennial …`."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services import cli_archive, cli_bench, cli_definitions, cli_inspect, cli_letters, cli_plan, cli_privacy
from services.cli_common import DEFAULT_HOME, HomeOption, JsonOption, command, say
from services.local.home import Home

if TYPE_CHECKING:
    from services.local.up import Installation

app = typer.Typer(
    name="perennial",
    help="Customer lifecycle, city cohorts and pushes from a stream of app events.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
demo_app = typer.Typer(help="The whole product on this machine, with simulated phones.", invoke_without_command=True)
app.add_typer(demo_app, name="demo")
cli_definitions.register(app)
cli_inspect.register(app)
cli_bench.register(app)
cli_letters.register(app)
cli_plan.register(app)
cli_privacy.register(app)
cli_archive.register(app)

KafkaOption = Annotated[
    str,
    typer.Option(
        "--kafka",
        metavar="embedded|apache|HOST:PORT",
        help="The log: embedded (in memory), Apache Kafka started here, or a server.",
    ),
]
PostgresOption = Annotated[
    str, typer.Option("--postgres", metavar="embedded|URL", help="The database: embedded, or a server's address.")
]
PortOption = Annotated[
    int, typer.Option("--port", help="First port; N to N+3, N+10 (push sandbox) and N+20 (Kafka) are used.")
]


@app.command()
@command
async def up(
    application: Annotated[
        str, typer.Option("--app", metavar="NAME", help="Name of the installation: its own database and topics.")
    ] = "",
    pack: Annotated[
        list[str] | None, typer.Option("--pack", help="Pack to apply at the start; a name or a folder. Repeatable.")
    ] = None,
    kafka: KafkaOption = "embedded",
    postgres: PostgresOption = "embedded",
    home: HomeOption = DEFAULT_HOME,
    port: PortOption = 8080,
    dev: Annotated[bool, typer.Option("--dev", help="Time can be moved forward with `perennial tick`.")] = False,
    no_phones: Annotated[
        bool, typer.Option("--no-phones", help="Without the push sandbox: pushes need a real provider.")
    ] = False,
) -> None:
    """Run everything on this machine, in the foreground. Ctrl-C stops all of it."""
    from services.local.up import Options, running

    options = Options(
        home=home,
        port=port,
        kafka=kafka,
        postgres=postgres,
        app=application,
        packs=tuple(pack or ()),
        # Whoever names a provider's account means that provider.
        sandbox=not no_phones and "PERENNIAL_NOTIFIER_FCM_ACCOUNT_FILE" not in os.environ,
        dev=dev,
    )
    async with running(options, say) as installation:
        say_where(installation)
        try:
            await asyncio.Event().wait()
        finally:
            say("stopping")


def say_where(installation: Installation) -> None:
    """What is running, where, and what of it stays."""
    status = installation.status
    for name in ("gateway", "segmenter", "notifier", "sandbox"):
        if status[name]:
            typer.echo(f"  {name:<10} {status[name]}")
    typer.echo(
        f"  {'kafka':<10} {status['kafka']}"
        + ("  (embedded: a restart empties it)" if "kafka" in status["embedded"] else "")
    )
    typer.echo(
        f"  {'postgres':<10} {status['postgres']}"
        + ("  (embedded: its data stays)" if "postgres" in status["embedded"] else "")
    )
    typer.echo(f"  {'write key':<10} {status['write_key']}")
    typer.echo(f"  home {status['home']}; Ctrl-C stops everything")


@demo_app.callback()
def demo(
    context: typer.Context,
    pack: Annotated[str, typer.Option(help="weather or commerce, or a folder.")] = "weather",
    once: Annotated[bool, typer.Option("--once", help="End by itself, with a summary.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the summary to FILE (- for stdout).")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same counts.")] = 1,
    phones: Annotated[
        int | None,
        typer.Option(min=1, max=200_000, help="Simulated phones; by default 2000, in a shop 1000.", show_default=False),
    ] = None,
    rate: Annotated[float, typer.Option(min=1, help="Events a second, once the phones have been set up.")] = 400.0,
    seconds: Annotated[float, typer.Option(min=0, help="How long people use the app at that rate.")] = 10.0,
    kafka: KafkaOption = "embedded",
    home: HomeOption = DEFAULT_HOME,
    port: PortOption = 8080,
) -> None:
    """Run everything, with phones that use the app, a push sandbox and a real weather-alert feed.

    A shop has a real shop's orders instead of the weather.
    """
    context.obj = home
    if context.invoked_subcommand is not None:
        return
    from services.demo import run as demo_run
    from services.local.up import Options

    options = Options(home=home, port=port, kafka=kafka, packs=(pack,), sandbox=True)
    phones = phones or (1000 if demo_run.is_shop(options) else 2000)
    demonstrate = command(demo_run.run)
    demonstrate(options=options, once=once, json_file=json_file, seed=seed, phones=phones, rate=rate, seconds=seconds)


@demo_app.command("alert")
def demo_alert(
    context: typer.Context,
    event: Annotated[str, typer.Argument(help="For example: Tornado Warning")],
    city: Annotated[str, typer.Argument(help="For example: Dallas, TX")],
    home: Annotated[Path | None, typer.Option("--home", help="The running one's home.")] = None,
) -> None:
    """Post a weather alert for a city to the running installation."""
    from services.demo.by_hand import post_alert

    @command
    async def post() -> int:
        return await post_alert(Home(home or context.obj).read_status(), event, city)

    post()


@demo_app.command("forecast")
def demo_forecast(
    context: typer.Context,
    city: Annotated[str, typer.Argument(help="For example: Dallas, TX")],
    home: Annotated[Path | None, typer.Option("--home", help="The running one's home.")] = None,
) -> None:
    """Post a made-up forecast for a city to the running installation, and have it told now."""
    from services.demo.by_hand import post_forecast

    @command
    async def post() -> int:
        return await post_forecast(Home(home or context.obj).read_status(), city)

    post()


@app.command()
@command
async def status(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> int:
    """Say where everything is."""
    found = Home(home).read_status()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return 0
    for line in status_lines(found):
        typer.echo(line)
    return 0


def status_lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for name, pid in found["pids"].items():
        running_as = (
            f"pid {pid}" if pid else ("not run here" if name in ("kafka", "postgres", "sandbox") else "not running")
        )
        where = found.get(name) or ""
        lines.append(f"{name:<10} {running_as:<14} {where}")
    lines += [f"{'write key':<10} {found['write_key']}", f"{'admin key':<10} {found['admin_key']}"]
    lines.append(f"{'embedded':<10} {', '.join(found['embedded']) or 'nothing'}")
    return lines


@app.command()
@command
async def doctor(home: HomeOption = DEFAULT_HOME) -> int:
    """Look for what is wrong, each problem with its remedy. Exit code 1 when there is any."""
    from services.local import doctor as local_doctor

    problems = await local_doctor.examine(Home(home).read_status())
    for problem in problems:
        typer.echo(f"✗ {problem}")
    if not problems:
        typer.echo("✓ nothing is wrong")
    return 1 if problems else 0


if __name__ == "__main__":
    app()
