"""How many of the spellings that apps really send lead to the right city, and does any lead to a wrong one?

`tests/data/cities_as_sent.tsv`: name, state, country or point as sent, and the GeoNames id a person means by it, "none"
where no city of the United States or Canada is meant or it cannot be told which. Who wrote it went by geography and
GeoNames (CC BY 4.0), not by what the code answers. A name without state or country is its most populous bearer.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from services.ingest.domain.places import locate
from shared.gazetteer import load

LIST = Path(__file__).parents[1] / "data" / "cities_as_sent.tsv"
FLOOR_PERCENT = 99.5


class Sent(NamedTuple):
    city: str
    state: str
    country: str
    lat: str
    lon: str
    city_id: str
    meant: str

    def properties(self) -> dict[str, str | float]:
        named = {name: value for name in ("city", "state", "country") if (value := getattr(self, name))}
        point = {name: float(value) for name in ("lat", "lon") if (value := getattr(self, name))}
        return named | point


def sent() -> list[Sent]:
    with LIST.open(encoding="utf-8", newline="") as file:
        return [Sent(*row) for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row[0][:1] != "#"]


def found(one: Sent) -> str:
    place = locate(one.properties(), load())
    return str(place) if isinstance(place, int) else "none"


def test_no_spelling_leads_to_a_wrong_city() -> None:
    """A city that is missed gets no alert; a wrong one gets somebody else's."""
    wrong = [(one.properties(), one.meant or "none", answer) for one in sent() if (answer := found(one)) not in
             (one.city_id, "none")]  # fmt: skip
    assert wrong == []


def test_the_hit_rate_is_what_the_documents_say() -> None:
    right = sum(found(one) == one.city_id for one in sent())
    assert 100 * right / len(sent()) >= FLOOR_PERCENT


def test_the_list_is_large_and_hard() -> None:
    """Each input once, none without a place meant or missing, and a good part that means no city at all."""
    rows = sent()
    assert len({row[:5] for row in rows}) == len(rows) >= 500
    assert sum(row.city_id == "none" for row in rows) >= 150
    assert sum(bool(row.lat) for row in rows) >= 50


def test_what_is_meant_is_the_city_of_that_id() -> None:
    """The list's own words for a city are checked against the gazetteer, so that no id is a slip of the pen."""
    for one in sent():
        place = load().get(int(one.city_id)) if one.city_id != "none" else None
        assert one.meant == (f"{place.name}, {place.state}" if place is not None else ""), one
