"""`perennial plan …`: a tracking plan from traffic, and what one would do to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from services.local import definitions
from services.local.program import LocalError
from shared.contracts.topics import Topic
from shared.process.clock import iso, monotonic

if TYPE_CHECKING:
    from services.ingest.domain.intake import Posted

plan = typer.Typer(help="Tracking plans: what the properties of events must be.", no_args_is_help=True)

EventsOption = Annotated[int, typer.Option("--events", min=1, help="At most so many, the last ones.")]
_SAY_SECONDS = 2.0


def register(app: typer.Typer) -> None:
    app.add_typer(plan, name="plan")


@plan.command("infer")
@command
async def infer(
    since: FromOption = "",
    until: ToOption = "",
    events: EventsOption = 100_000,
    least: Annotated[int, typer.Option(min=1, help="Leave out events seen less often.")] = 20,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write there; it must not exist.")] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Write a tracking plan that accepts the events posted lately, as YAML that a pack takes in.

    Every event in it is only flagged; read it, then make it stricter. Values are listed where there are few, each
    posted by several users, and nothing says that they are a person's.
    """
    from services.ingest.domain.inferring import Inference
    from services.ingest.domain.plan_text import written

    if out is not None and out.exists():
        raise LocalError(f"{out} exists already; move it away or choose another file")
    if out is not None and not out.parent.is_dir():
        raise LocalError(f"there is no folder {out.parent}")
    inference = Inference(least)
    first, last = await _read(Target(home), since, until, events, inference.see)
    if not inference.seen:
        raise LocalError("no event was posted in that time")
    text = written(inference, [f"Inferred from {inference.seen:,} events received {iso(first)} to {iso(last)}."])
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
    for line in inference.left_out():
        say(f"left out: {line}")
    say(f"{len(inference.events())} planned events; `perennial plan check FILE` tries the plan on traffic")


@plan.command("check")
@command
async def check(
    file: Annotated[str, typer.Argument(help="A file with a tracking_plan, or a pack: its name or folder.")],
    since: FromOption = "",
    until: ToOption = "",
    events: EventsOption = 100_000,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Try a tracking plan on the events posted lately: how many it would reject, mend or flag, and why.

    Nothing is installed. A file's plan is tried within the pack in force."""
    from services.ingest.domain.plan_trial import Trial

    target = Target(home)
    async with target.database() as connection:
        rules = await definitions.version(connection)
    trial = Trial(definitions.load_tracking_plan(file, rules))
    await _read(target, since, until, events, trial.see)
    told = trial.told()
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    for line in trial_lines(told):
        typer.echo(line)


def trial_lines(told: dict[str, Any]) -> list[str]:
    lines = []
    for item in told["items"]:
        counts = [f"{item['events']:,} events", *_became(item)]
        lines.append(f"{item['event'] or 'all other events'}: {', '.join(counts)}")
        lines += [f"    {r['events']:>9,}  {r['action']:<6}  {r['reason']}" for r in item["reasons"]]
    return [*lines, f"of {told['events']:,} events: {', '.join(_became(told)) or 'the plan agrees with all'}"]


def _became(counts: dict[str, Any]) -> list[str]:
    words = (("reject", "would be rejected"), ("drop", "would lose properties"), ("flag", "would be flagged"))
    return [f"{counts[action]:,} {word}" for action, word in words if counts[action]]


async def _read(
    target: Target, since: str, until: str, most: int, see: Callable[[Posted | None], None]
) -> tuple[int, int]:
    """Show `see` the traffic of a span; when the first and the last of it were received."""
    from services.ingest import traffic
    from services.ingest.domain.intake import posted
    from services.ingest.letters.listing import FAR_MS

    span = traffic.Span(instant(since, 0), instant(until, FAR_MS), most)
    topic, first, last, done = target.names.topic(Topic.RAW), FAR_MS, 0, 0
    async with target.log() as reader:
        selected = await traffic.select(reader, topic, target.shards, span)
        said = monotonic()
        async with aclosing(traffic.pages(reader, topic, selected)) as pages:
            async for page in pages:
                for record in page:
                    see(posted(record))
                    first, last = min(first, record.received_at), max(last, record.received_at)
                done += len(page)
                if monotonic() - said > _SAY_SECONDS:
                    said = monotonic()
                    say(f"{done:,} of {selected.total:,} events")
    return first, last
