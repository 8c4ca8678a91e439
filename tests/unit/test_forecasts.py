"""What may be posted as a forecast, and what is wrong with what may not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.notifier.context.forecasts import MAX_ITEMS, Forecast, from_contract
from services.notifier.context.intake import Triggered, read, split, trigger
from shared.gazetteer import load
from tests.support.people import BOSTON, NEW_YORK


def _body(**more: Any) -> dict[str, Any]:
    return {
        "id": "f", "kind": "forecast", "areas": [{"city": "Boston", "state": "MA"}, {"city_id": str(NEW_YORK)}],
        "starts_at": "2026-06-10T00:00:00-04:00", "ends_at": "2026-06-11T00:00:00-04:00",
        "data": {"summary": "Sunny", "high": 21.0, "low": -0.25, "unit": "C", "precipitation_percent": 5},
    } | more  # fmt: skip


def test_a_forecast_names_cities_and_what_templates_may_say() -> None:
    found = from_contract(_body(), load())
    assert found.city_ids == tuple(sorted((BOSTON, NEW_YORK)))
    assert found.ends_at - found.starts_at == 86_400_000
    # a whole number is told as one: no push says 21.0 degrees
    assert found.facts == {"summary": "Sunny", "high": 21, "low": -0.2, "unit": "C", "precipitation_percent": 5}
    assert isinstance(found.facts["high"], int)
    bare = from_contract(_body(data={"summary": "Wind"}, areas=[{"state": "RI"}]), load())
    assert bare.facts["unit"] is None and len(bare.city_ids) > 5


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"id": ""}, "id must be text"),
        ({"areas": []}, "areas must be a list"),
        ({"areas": [{"city": "Nowhere at all"}]}, "not known"),
        ({"areas": [{"same": "073530"}]}, "no known city"),
        ({"ends_at": "2026-06-09T00:00:00Z"}, "later than starts_at"),
        ({"starts_at": 7}, "RFC 3339"),
        ({"data": None}, "data must be an object"),
        ({"data": {}}, "data.summary must be text"),
        ({"data": {"summary": "S", "high": "warm", "unit": "F"}}, "data.high must be a number"),
        ({"data": {"summary": "S", "high": True, "unit": "F"}}, "data.high must be a number"),
        ({"data": {"summary": "S", "high": 1e9, "unit": "F"}}, "data.high must be -200 to 200"),
        ({"data": {"summary": "S", "high": 70}}, "data.unit must be C or F"),
        ({"data": {"summary": "S", "low": 70, "unit": "K"}}, "unit must be one of C, F"),
        ({"data": {"summary": "S", "precipitation_percent": 101}}, "must be 0 to 100"),
    ],
)
def test_what_is_no_forecast_is_told_in_a_sentence(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        split(_body(**wrong), load(), 0)


def test_of_several_those_that_can_be_read_are_taken() -> None:
    items = [_body(id="a"), _body(id="b", data={}), {**_body(id="c"), "kind": "ignored"}]
    records, unreadable = split({"kind": "forecast", "items": items}, load(), 7)
    assert [(r.id, r.kind, r.received_at) for r in records] == [("a", "forecast", 7), ("c", "forecast", 7)]
    assert [u.id for u in unreadable] == ["b"]
    assert all(isinstance(read(record, load()), Forecast) for record in records)
    several: tuple[list[Any], ...] = ([], [1], [{}] * (MAX_ITEMS + 1))
    for wrong in several:
        with pytest.raises(ValueError, match="items"):
            split({"kind": "forecast", "items": wrong}, load(), 0)


def test_a_call_for_a_campaign_reads_as_it_was_made() -> None:
    assert read(trigger("m", "k", None, load(), 1), load()) == Triggered("trigger:m:k", "m", "k", None)
    some = read(trigger("m", "k", [{"city_id": str(BOSTON)}], load(), 1), load())
    assert isinstance(some, Triggered) and some.city_ids == (BOSTON,)
    assert msgspec.json.decode(trigger("m", "k", None, load(), 1).body)["key"] == "k"
    with pytest.raises(ValueError, match="areas"):
        trigger("m", "k", {}, load(), 1)
