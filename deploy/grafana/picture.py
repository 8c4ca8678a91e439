"""What does the dashboard show? Draws it, without Grafana, from what a running Prometheus answers to its queries.

    python3 -m venv pic && pic/bin/pip install -r deploy/grafana/requirements.txt
    pic/bin/python deploy/grafana/picture.py http://127.0.0.1:9090 docs/road-of-an-event.png --minutes 15

Panels stand where the dashboard's own grid puts them, with its titles, units, legends and thresholds; of series that
stand at zero all the time a legend says only how many there are. Each query is put as Grafana would put it
(`$__rate_interval` is four scrapes, or one step and one scrape where that is more). Where a process told nothing, its
line is broken. Red bands are the times at which an alert fires: the dashboard's annotation.
"""

# ruff: noqa: INP001 - deploy/ holds scripts, and is no package
from __future__ import annotations

import argparse
import json
import math
import re
import urllib.parse
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.dates as mdates
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from PIL import Image

DASHBOARD = Path(__file__).with_name("road-of-an-event.json")
COLUMNS = 24
COLUMN_INCHES, ROW_INCHES, DPI = 0.78, 0.42, 100
LETTERS = 9
"""Of a legend, in one column of the grid."""
GAP = 0.12
"""Between panels, in columns and rows of the grid."""
INK, QUIET, LINE, PAPER, BACK = "#23272e", "#7a828e", "#e3e6ea", "#ffffff", "#f5f6f8"
COLOURS = ["#3b76af", "#e08a3c", "#519e58", "#c1504e", "#8d6fb5", "#8a6a5c", "#d584bd", "#7f7f7f", "#b5b13e", "#4bb3c4"]
NAMED = {"green": "#3f9142", "orange": "#d9822b", "red": "#c23030", "text": INK}

Points = list[tuple[float, float]]


@dataclass
class Asked:
    """A running Prometheus, and the range of time that is drawn."""

    url: str
    begin: float
    end: float
    step: float
    scrape: float
    firing: set[float] = field(default_factory=set)
    """Moments at which some alert fires."""

    def series(self, target: dict[str, Any]) -> list[tuple[str, Points]]:
        """(legend, points) of each series a panel's query returns over the range."""
        found = self.over_time(target["expr"])
        return [(_legend(target["legendFormat"], one["metric"]), _points(one["values"])) for one in found]

    def ticks(self) -> list[float]:
        """Round moments of the range, five at most."""
        apart = next(m * 60 for m in (1, 2, 5, 10, 15, 30, 60, 180, 360, 720, 1440) if self.end - self.begin < m * 300)
        return [float(at) for at in range(-int(-self.begin // apart) * apart, int(self.end) + 1, apart)]

    def over_time(self, expression: str) -> list[dict[str, Any]]:
        return self._ask("query_range", expression, start=self.begin, end=self.end, step=self.step)

    def value(self, expression: str) -> float | None:
        """What a query returns at the end of the range; None where that is nothing."""
        found = self._ask("query", expression, time=self.end)
        return float(found[0]["value"][1]) if found else None

    def _ask(self, path: str, expression: str, **parameters: float) -> list[dict[str, Any]]:
        interval = max(self.step + self.scrape, 4 * self.scrape)
        query = {"query": expression.replace("$__rate_interval", f"{interval:g}s"), **parameters}
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - a Prometheus the caller names
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found


def _points(values: list[list[Any]]) -> Points:
    return [(float(at), float(value)) for at, value in values if value not in ("NaN", "+Inf", "-Inf")]


def _legend(template: str, labels: dict[str, str]) -> str:
    if template == "__auto":
        return ""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda named: labels.get(named[1], ""), template).strip() or "none"


def told(value: float, unit: str) -> str:
    """A value as Grafana words it in this unit."""
    match unit:
        case "s":
            if 0 < abs(value) < 1:
                return f"{value * 1000:.3g} ms"
            return f"{value:.3g} s" if abs(value) < 120 else f"{value / 60:.3g} min"
        case "percentunit":
            return f"{value * 100:.3g}%"
        case "bytes":
            return f"{value / 2**20:.0f} MiB"
    number = f"{value / 1000:.3g} K" if abs(value) >= 10_000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return number + {"cps": " c/s", "reqps": " req/s"}.get(unit, "")


class Board:
    """The figure on which panels get their places; `y` counts rows of the grid from the top."""

    def __init__(self, panels: list[dict[str, Any]], asked: Asked, title: str) -> None:
        self._asked = asked
        self._rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) + 2
        self.figure = Figure(figsize=(COLUMNS * COLUMN_INCHES, self._rows * ROW_INCHES), dpi=DPI, facecolor=BACK)
        self._text({"x": 0, "y": -1.75, "w": COLUMNS, "h": 1.5}, title, size=19, weight="bold")
        for panel in panels:
            draw = {"row": self._row, "stat": self._stat, "timeseries": self._timeseries}[panel["type"]]
            draw(panel)

    def _axes(self, at: dict[str, Any], left: float = 0, right: float = 0, top: float = 0, bottom: float = 0) -> Axes:
        """Axes over a place of the grid, less these margins; in columns and rows."""
        x, w = at["x"] + GAP + left, at["w"] - 2 * GAP - left - right
        y, h = at["y"] + 2 + GAP + top, at["h"] - 2 * GAP - top - bottom
        return self.figure.add_axes((x / COLUMNS, 1 - (y + h) / self._rows, w / COLUMNS, h / self._rows))

    def _text(self, at: dict[str, Any], text: str, size: float, weight: str = "normal", colour: str = INK) -> None:
        axes = self._axes(at)
        axes.set_axis_off()
        axes.text(0, 0.5, text, fontsize=size, color=colour, va="center", weight=weight, transform=axes.transAxes)

    def _sheet(self, panel: dict[str, Any]) -> None:
        """The white ground of a panel, and its title."""
        at = panel["gridPos"]
        axes = self._axes(at)
        axes.set(facecolor=PAPER, xticks=[], yticks=[])
        axes.spines[:].set_color(LINE)
        x, y = 0.14 / at["w"], 1 - 0.55 / at["h"]
        axes.text(x, y, panel["title"], fontsize=11.5, color=INK, va="center", weight="bold", transform=axes.transAxes)

    def _row(self, panel: dict[str, Any]) -> None:
        self._text(panel["gridPos"], panel["title"], size=14, weight="bold", colour=QUIET)

    def _stat(self, panel: dict[str, Any]) -> None:
        self._sheet(panel)
        value = self._asked.value(panel["targets"][0]["expr"])
        text, colour = ("no data", QUIET) if value is None else _stat_of(value, panel["fieldConfig"]["defaults"])
        axes = self._axes(panel["gridPos"], top=1.1, bottom=0.3)
        axes.set_axis_off()
        axes.text(0.5, 0.5, text, fontsize=21, color=colour, ha="center", va="center", weight="bold")

    def _timeseries(self, panel: dict[str, Any]) -> None:
        self._sheet(panel)
        at, defaults = panel["gridPos"], panel["fieldConfig"]["defaults"]
        several = [one for target in panel["targets"] for one in self._asked.series(target) if one[1]]
        shown = [name for name, points in several if any(value for _, value in points)]
        quiet = len(several) - len(shown)
        shown += [f"{quiet} more at zero" if shown else "all at zero"] if quiet else []
        columns = max(1, min(len(shown), int(at["w"] * LETTERS / max((len(name) + 5 for name in shown), default=1))))
        lines = -(-len(shown) // columns)
        axes = self._axes(at, left=0.95, right=0.15, top=1.1, bottom=0.75 + 0.5 * lines)
        stacked = defaults.get("custom", {}).get("stacking", {}).get("mode") == "normal"
        below: dict[float, float] = {}
        colours = cycle(COLOURS)
        for name, points in several:
            if name not in shown:
                continue
            colour, times = next(colours), [moment for moment, _ in points]
            floor = [below.get(moment, 0.0) if stacked else 0.0 for moment in times]
            values = [value + under for (_, value), under in zip(points, floor, strict=True)]
            whole = [time - before < 1.5 * self._asked.step for before, time in pairwise(times)]
            drawn = [value if joined else math.nan for value, joined in zip(values, [True, *whole], strict=True)]
            axes.plot(_dates(times), drawn, color=colour, linewidth=1.3, label=name)
            axes.fill_between(_dates(times), floor, drawn, color=colour, alpha=0.3 if stacked else 0.06, linewidth=0)
            below |= dict(zip(times, values, strict=True))
        if quiet:
            axes.plot([], [], color=LINE, label=shown[-1])
        for moment in self._asked.firing:
            axes.axvspan(*_dates([moment, moment + self._asked.step]), color=NAMED["red"], alpha=0.09, linewidth=0)
        self._scales(axes, defaults.get("unit", "none"))
        if not several:
            axes.text(0.5, 0.5, "nothing in this time", color=QUIET, fontsize=11, ha="center", transform=axes.transAxes)
            return
        legend = self._axes({**at, "y": at["y"] + at["h"] - 0.45 - 0.5 * lines, "h": 0.5 * lines + 0.3})
        legend.set_axis_off()
        legend.legend(
            *axes.get_legend_handles_labels(), loc="center left", ncols=columns, fontsize=9, frameon=False,
            labelcolor=INK, handlelength=1, handletextpad=0.4, columnspacing=1.1, labelspacing=0.2, borderaxespad=0.3,
        )  # fmt: skip

    def _scales(self, axes: Axes, unit: str) -> None:
        axes.set_xlim(*_dates([self._asked.begin, self._asked.end]))
        bottom, top = axes.get_ylim()
        axes.set_ylim(0, top if top > 0 and bottom < top else 1)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: told(value, unit)))
        axes.xaxis.set_major_locator(FixedLocator(_dates(self._asked.ticks())))
        axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M"))
        axes.tick_params(length=0, labelsize=9, colors=QUIET)
        axes.grid(color=LINE, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)


def _dates(times: list[float]) -> list[float]:
    return [at / 86_400 for at in times]


def _stat_of(value: float, defaults: dict[str, Any]) -> tuple[str, str]:
    """Text and colour of a single value, by the panel's mappings and thresholds."""
    for mapping in defaults.get("mappings", []):
        if (named := mapping["options"].get(f"{value:g}")) is not None:
            return named["text"], NAMED[named["color"]]
    colour = "text"
    for step in defaults.get("thresholds", {}).get("steps", []):
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    return told(value, defaults.get("unit", "none")), NAMED[colour]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prometheus", help="URL of a running Prometheus")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--minutes", type=float, default=60, help="how much time is drawn")
    parser.add_argument("--until", type=float, help="its end, in seconds since 1970; now where it is not given")
    parser.add_argument("--scrape", type=float, default=5, help="seconds between two scrapes")
    wanted = parser.parse_args()
    mpl.use("Agg")
    plt.rcParams["font.family"] = "DejaVu Sans"

    with urllib.request.urlopen(f"{wanted.prometheus}/api/v1/query?query=time()", timeout=10) as answer:  # noqa: S310
        end = wanted.until or float(json.load(answer)["data"]["result"][0])
    begin = end - wanted.minutes * 60
    asked = Asked(wanted.prometheus, begin, end, max(wanted.scrape, (end - begin) / 300), wanted.scrape)
    dashboard = json.loads(DASHBOARD.read_text())
    fired: Counter[str] = Counter()
    for annotation in dashboard["annotations"]["list"]:
        for one in asked.over_time(annotation["expr"]):
            moments = [moment for moment, _ in _points(one["values"])]
            fired[_legend(annotation["titleFormat"], one["metric"])] += len(moments)
            asked.firing.update(moments)
    board = Board(dashboard["panels"], asked, dashboard["title"])
    drawn = wanted.picture.with_suffix(".full.png")
    board.figure.savefig(drawn)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(200).save(wanted.picture, optimize=True)
    drawn.unlink()
    for alert, times in fired.items():
        print(f"{alert} fires for {times * asked.step:.0f} s")  # noqa: T201


if __name__ == "__main__":
    main()
