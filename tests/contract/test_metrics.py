"""Is every metric declared once, named as metrics are, counted somewhere and written down?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.process import metrics
from shared.process.metrics import DECLARED, Declared

ROOT = Path(__file__).resolve().parents[2]
CODE = [path for part in ("shared", "services") for path in sorted((ROOT / part).rglob("*.py"))]
OWN = ROOT / "shared/process/metrics.py"


@pytest.mark.parametrize("metric", DECLARED, ids=lambda m: m.name)
def test_a_metric_is_named_and_explained(metric: Declared) -> None:
    assert re.fullmatch(r"perennial(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.kind != "histogram" or metric.name.endswith("_seconds")
    assert metric.meaning.endswith(".") and metric.action.endswith(".")
    assert not {"user", "user_id", "token", "message_id", "shard", "city_id"} & set(metric.labels)


def test_the_page_lists_every_metric_and_no_other() -> None:
    listed = re.findall(r"^\| `(perennial_\w+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    assert listed == [metric.name for metric in DECLARED]


def test_metrics_are_declared_in_one_place() -> None:
    """A metric declared elsewhere would be missing from the page."""
    elsewhere = [
        str(path.relative_to(ROOT))
        for path in CODE
        if path != OWN
        and re.search(r"from prometheus_client import .*(Counter|Gauge|Histogram|Summary)", path.read_text())
    ]
    assert not elsewhere


def test_every_metric_is_used() -> None:
    """One that nobody counts stands at zero and says that all is well."""
    names = {
        name
        for name, value in vars(metrics).items()
        if name.isupper() and name not in ("DECLARED", "REGISTRY") and hasattr(value, "collect")
    }
    assert len(names) == len(DECLARED)
    text = "\n".join(path.read_text() for path in CODE if path != OWN)
    assert not {
        name for name in names if not re.search(rf"\b{name}\.", text) and not re.search(rf"\b{name}\b.*\)\.", text)
    }


def test_the_page_says_where_to_look_first_in_each_service() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    for service in ("gateway", "ingest", "segmenter", "notifier"):
        (row,) = re.findall(rf"^\| {service} \|(.*)\|$", page, re.MULTILINE)
        named = re.findall(r"`(\w+)`", row)
        assert len(named) >= 4 and {f"perennial_{name}" for name in named} <= {metric.name for metric in DECLARED}
