"""How the bench's figures are told: a table for people, JSON for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from services.bench.figures import Figure
from services.bench.plan import Plan
from shared.process.clock import Clock, iso

_MARK = {True: "yes", False: "NO", None: ""}


def document(figures: Sequence[Figure], plan: Plan, kafka: str, seconds: float) -> dict[str, Any]:
    """Everything, as `--json` writes it."""
    return {
        "at": iso(Clock().real_ms()),
        "seconds": round(seconds, 1),
        "kafka": kafka,
        "machine": machine(),
        "plan": {"seconds": plan.seconds, "rounds": plan.rounds, "users": plan.users, "spread": plan.spread},
        "figures": [figure.told() for figure in figures],
    }


def machine() -> dict[str, Any]:
    """What was measured on."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "perennial": version("perennial"),
        "aiokafka": version("aiokafka"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def show(figures: Sequence[Figure], console: Console) -> None:
    """Two tables: figures beside their ceilings and targets, and what each process used."""
    table = Table(title="medians of alternating rounds", title_justify="left")
    for name in ("what", "figure", "ceiling", "of it", "target", "met", "p50/p99 ms"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for one in figures:
        table.add_row(
            one.what,
            f"{_number(one.value)} {one.unit}",
            "" if one.ceiling is None else _number(one.ceiling),
            "" if one.ratio is None else f"{one.ratio:.0%}",
            "" if one.target is None else f"{'≤' if one.at_most else '≥'} {_number(one.target)}",
            _MARK[one.met],
            "" if one.p50_ms is None or one.p99_ms is None else f"{one.p50_ms:.0f}/{one.p99_ms:.0f}",
        )
    console.print(table)
    console.print(usage(figures))
    for one in figures:
        if one.note:
            console.print(f"  {one.what}: {one.note}")


def usage(figures: Sequence[Figure]) -> Table:
    table = Table(title="CPU seconds per million", title_justify="left")
    table.add_column("what")
    table.add_column("product")
    table.add_column("ceiling")
    for one in figures:
        if one.cpu_per_million:
            table.add_row(one.what, _shares(one.cpu_per_million), _shares(one.ceiling_cpu_per_million))
    return table


def _shares(cpu: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in sorted(cpu.items(), key=lambda item: -item[1]))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"
