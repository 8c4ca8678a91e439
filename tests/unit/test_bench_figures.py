"""Are the bench's figures what its rounds say?"""

from __future__ import annotations

import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.bench import figures
from services.bench.figures import Figure, Round
from services.bench.plan import Plan, alternately


@pytest.mark.parametrize(
    ("values", "percent", "found"),
    [([7.0], 50, 7.0), ([3.0, 1.0, 2.0], 50, 2.0), ([4.0, 1.0, 3.0, 2.0], 50, 2.0), ([float(n) for n in range(1, 201)], 99, 198.0),
     ([float(n) for n in range(1, 101)], 99, 99.0), ([1.0, 2.0], 100, 2.0), ([1.0, 2.0], 1, 1.0)],
)  # fmt: skip
def test_a_percentile_is_the_nearest_rank(values: list[float], percent: float, found: float) -> None:
    """An interpolated or truncated rank differs at the edges, where p99 of a short run lies."""
    assert figures.percentile(values, percent) == found


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0.5, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], percent: float) -> None:
    found = figures.percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        figures.percentile([], 50)


def test_figure_and_ratio_are_of_medians() -> None:
    """One slow round of either side, such as a neighbour's build causes, must not move the ratio."""
    product = [Round(100, 1.0), Round(100, 50.0), Round(100, 1.25)]
    ceiling = [Round(100, 0.5), Round(100, 0.4), Round(100, 9.0)]
    found = figures.throughput("x", "x", product, ceiling, target=80)
    assert (found.value, found.ceiling) == (80.0, 200.0)
    assert found.ratio == pytest.approx(0.4)
    assert found.met
    assert found.values == [100.0, 2.0, 80.0]


@pytest.mark.parametrize(
    ("target", "at_most", "met"),
    [(None, False, None), (10.0, False, True), (10.1, False, False), (10.0, True, True), (9.9, True, False)],
)
def test_a_target_is_a_least_or_a_most(target: float | None, at_most: bool, met: bool | None) -> None:
    assert Figure("x", "x", "ms", 10.0, target=target, at_most=at_most).met is met


def test_processor_time_is_per_million_and_of_the_middle_round() -> None:
    rounds = [Round(1_000, 1.0, {"a": 0.5}), Round(2_000, 1.0, {"a": 0.5, "b": 0.1}), Round(1_000, 1.0, {"a": 9.0})]
    assert figures.cpu_per_million(rounds) == {"a": 500.0, "b": 50.0}


def test_who_did_next_to_nothing_or_was_not_there_is_left_out() -> None:
    assert figures.used({"a": 1.0, "b": 2.0, "gone": 1.0}, {"a": 1.5, "b": 2.01, "new": 7.0}) == {"a": 0.5}


def test_a_figure_as_json_carries_what_follows_from_it() -> None:
    told = json.loads(json.dumps(Figure("x", "what", "events/s", 60.0, 120.0, target=80.0).told()))
    assert told == {
        "name": "x", "what": "what", "unit": "events/s", "value": 60.0, "ceiling": 120.0, "target": 80.0, "ratio": 0.5,
        "met": False,
    }  # fmt: skip


async def test_product_and_ceiling_take_turns() -> None:
    """Rounds of one side after those of the other would measure the machine's drift."""
    order: list[str] = []

    async def product() -> Round:
        order.append("product")
        return Round(1, 1.0)

    async def ceiling() -> Round:
        order.append("ceiling")
        return Round(2, 1.0)

    products, ceilings = await alternately(3, product, ceiling)
    assert order == ["product", "ceiling"] * 3
    assert (len(products), len(ceilings)) == (3, 3)
    assert statistics.mean(one.events for one in ceilings) == 2


def test_a_backlog_lasts_a_round_at_the_rate_aimed_at() -> None:
    assert Plan(seconds=2.0).backlog(90_000) == 180_000
    assert Plan(seconds=0.0001).backlog(100) == 1
