"""Commands that measure: how fast this machine runs the product, beside what bare programs reach on it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from services.cli_common import command, say

bench = typer.Typer(help="Measurements, each beside its ceiling in the same run.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(bench, name="bench")


@bench.command("quick")
@command
async def quick(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything to FILE (- for stdout).")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="gateway, ingest, segmenter, end-to-end or dispatch. Repeatable."),
    ] = None,
    kafka: Annotated[
        str,
        typer.Option(
            "--kafka",
            metavar="apache|embedded|HOST:PORT",
            help="The log; the targets are for Apache Kafka started here.",
        ),
    ] = "apache",
    seconds: Annotated[
        float, typer.Option(min=0.01, max=300, help="How long a round lasts, at the rate aimed at.")
    ] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="Rounds of product and ceiling, by turns.")] = 3,
    users: Annotated[int, typer.Option(min=1, max=8_000_000, help="Users who act.")] = 200_000,
    spread: Annotated[Literal["zipf", "uniform"], typer.Option(help="How often each acts.")] = "zipf",
    port: Annotated[int, typer.Option(help="First port; N to N+4, N+10 and N+20 are used.")] = 8280,
) -> None:
    """Measure gateway, ingest, segmenter, the whole road and dispatch: under six minutes on two cores."""
    from services.bench import report
    from services.bench.plan import Plan
    from services.bench.run import quick as measure
    from shared.process.clock import monotonic

    plan, began = Plan(seconds, rounds, users, spread), monotonic()
    figures = await measure(only or (), kafka, plan, port, say)
    aside = json_file is not None and str(json_file) == "-"
    report.show(figures, Console(stderr=aside, width=None if sys.stdout.isatty() else 140))
    if json_file is not None:
        text = (
            json.dumps(report.document(figures, plan, kafka, monotonic() - began), indent=2, ensure_ascii=False) + "\n"
        )
        if aside:
            sys.stdout.write(text)
        else:
            json_file.write_text(text)
