"""Does the bench measure: product and ceiling, by turns, on real servers?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.bench.plan import Plan
from services.bench.run import MEASURES, measured
from services.bench.site import Servers
from services.cli import app
from services.local.postgres import EmbeddedPostgres
from tests.support.ports import free_base


@pytest.mark.kafka
async def test_the_gateway_and_its_ceiling_take_turns(
    apache_kafka: str, postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """A program that ends, a post that is refused or a round that never ends would fail here; rates mean nothing."""
    shared = Servers(tmp_path, free_base(), None, apache_kafka, lambda _: None)
    shared.postgres = postgres_server
    figures = await measured(shared, ["gateway"], Plan(seconds=0.05, rounds=2, users=50), lambda _: None)
    taken = [one for one in figures if one.ceiling is not None]
    assert [one.name for one in taken] == [
        "gateway_phones_100", "gateway_mixed_100", "gateway_phones_20", "gateway_singles",
    ]  # fmt: skip
    for one in taken:
        assert len(one.values) == len(one.ceiling_values) == 2
        assert min(*one.values, *one.ceiling_values) > 0
        assert one.p50_ms is not None and one.p99_ms is not None and 0 < one.p50_ms <= one.p99_ms


@pytest.mark.long
@pytest.mark.timeout(240)
def test_every_measurement_is_told_in_one_document(tmp_path: Path) -> None:
    """The whole command on the embedded broker, with counts as small as they get."""
    file = tmp_path / "bench.json"
    options = [
        "--kafka",
        "embedded",
        "--seconds",
        "0.02",
        "--rounds",
        "1",
        "--users",
        "200",
        "--port",
        str(free_base()),
    ]
    ran = CliRunner().invoke(app, ["bench", "quick", *options, "--json", str(file)])
    assert ran.exit_code == 0, ran.output
    told = json.loads(file.read_text())
    figures = {one["name"]: one for one in told["figures"]}
    assert {
        "gateway_phones_100", "ingest", "segmenter", "segmenter_share", "end_to_end", "push_p99_at_1000", "dispatch",
        "dispatch_per_core",
    } <= set(figures)  # fmt: skip
    assert all(one["value"] > 0 for one in figures.values())
    assert figures["ingest"]["ceiling"] > 0 < figures["end_to_end"]["ratio"]
    assert told["machine"]["cores"] > 0
    assert "end to end" in ran.output


def test_a_measurement_that_does_not_exist_is_named_before_anything_starts() -> None:
    ran = CliRunner().invoke(app, ["bench", "quick", "--only", "everything"])
    assert ran.exit_code == 1
    assert "everything" in ran.output
    assert all(name in ran.output for name in MEASURES)
