"""Is a point inside a polygon, and which cities are? Compared with another algorithm (`tests/support/polygons.py`)."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.demo.weather import feed
from services.notifier.context.alerts import Alert, cities_of, verdict
from services.notifier.context.intake import decode_context, encode_context, split
from services.notifier.context.intake import read as read_record
from services.notifier.context.nws import parse
from services.notifier.context.polygon import cities_inside, contains, read_geometry, read_ring
from shared.gazetteer import load
from tests.support.people import CHICAGO, NEW_YORK
from tests.support.polygons import cities_in, inside

SQUARE = [[-90.0, 40.0], [-86.0, 40.0], [-86.0, 43.0], [-90.0, 43.0], [-90.0, 40.0]]
HOLE = [[-87.8, 41.8], [-87.5, 41.8], [-87.5, 41.9], [-87.8, 41.9], [-87.8, 41.8]]
"""Around the centre of Chicago."""


def star(lon: float, lat: float, spokes: list[float]) -> list[list[float]]:
    """A ring around a point, as far away in each direction as told: any shape that does not cross itself."""
    turn = 2 * math.pi / len(spokes)
    ring = [[lon + r * math.cos(n * turn), lat + r * math.sin(n * turn)] for n, r in enumerate(spokes)]
    return [*ring, ring[0]]


def read(geometry: dict[str, Any]) -> Any:
    return read_geometry(geometry)


spokes = st.lists(st.floats(0.2, 4.0), min_size=3, max_size=12)


@given(spokes, spokes, st.floats(-5, 5), st.floats(-5, 5), st.booleans())
def test_inside_is_what_the_other_algorithm_says(
    outer: list[float], hole: list[float], lon: float, lat: float, backwards: bool
) -> None:
    """Holes too, and rings of either direction; points next to an edge aside, where either answer is right."""
    around = star(0, 0, outer)
    # a hole that leaves its outer ring is none in GeoJSON: this one stays nearer to the middle than every edge
    nearest = min(_distance(0, 0, a, b) for a, b in pairwise(around))
    rings = [around, star(0, 0, [0.9 * nearest * r / 4 for r in hole])]
    rings = [ring[::-1] for ring in rings] if backwards else rings
    assume(all(_distance(lon, lat, a, b) > 1e-6 for ring in rings for a, b in pairwise(ring)))
    (polygon,) = read({"type": "Polygon", "coordinates": rings})
    assert contains(polygon, lon, lat) == inside(rings, lon, lat)


def _distance(lon: float, lat: float, a: list[float], b: list[float]) -> float:
    dx, dy = b[0] - a[0], b[1] - a[1]
    along = max(0.0, min(1.0, ((lon - a[0]) * dx + (lat - a[1]) * dy) / (dx * dx + dy * dy or 1)))
    return math.hypot(lon - a[0] - along * dx, lat - a[1] - along * dy)


def test_cities_are_those_an_independent_count_finds() -> None:
    geometry = {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [star(-74.0, 40.7, [0.3] * 9)]]}
    found = cities_inside(read(geometry), load())
    assert found == set(cities_in(geometry))
    assert NEW_YORK in found and CHICAGO not in found
    assert CHICAGO in cities_inside(read({"type": "Polygon", "coordinates": [SQUARE]}), load())


def test_a_polygon_across_the_antimeridian_is_no_polygon_around_the_world() -> None:
    aleutians = [[179.0, 50.0], [-175.0, 50.0], [-175.0, 53.0], [179.0, 53.0]]
    places = load()
    found = cities_inside([(read_ring(aleutians),)], places)
    shown = [place for city_id in found if (place := places.get(city_id))]
    assert all(place.lon < -174 or place.lon > 178 for place in shown)


def test_a_hundred_polygons_take_a_moment() -> None:
    """Only cities of the box are looked at: 24,000 places by 500 alerts would be twelve million points."""
    several = [read({"type": "Polygon", "coordinates": [star(-95 + n / 10, 35, [0.5] * 15)]}) for n in range(100)]
    began = time.perf_counter()
    assert sum(len(cities_inside(one, load())) for one in several) > 100
    assert time.perf_counter() - began < 0.2


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"type": "Point", "coordinates": [0, 0]},
        {"type": "Polygon"},
        {"type": "Polygon", "coordinates": []},
        {"type": "Polygon", "coordinates": [[]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], ["2", 0]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [math.nan, 0]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 91], [2, 0]]]},
        {"type": "MultiPolygon", "coordinates": [SQUARE[0]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [0, 1], [1, 1]] * 10_000]},
        [],
        "Polygon",
    ],
)
def test_a_geometry_that_cannot_be_read_leaves_the_alert_its_counties(geometry: Any) -> None:
    with pytest.raises(ValueError, match=r"geometry|ring|point"):
        read_geometry(geometry)
    alert = one(geometry)
    assert CHICAGO in cities_of(alert, load()) and not alert.polygons


def one(geometry: Any, same: str = "017031") -> Alert:
    properties = {
        "id": "urn:1", "event": "Flood Warning", "status": "Actual", "messageType": "Alert", "severity": "Severe",
        "sent": "2026-01-02T03:00:00Z", "expires": "2026-01-02T05:00:00Z", "geocode": {"SAME": [same], "UGC": []},
    }  # fmt: skip
    (alert,) = parse({"type": "Feature", "properties": properties, "geometry": geometry})
    assert isinstance(alert, Alert)
    return alert


def test_a_polygon_narrows_its_counties_and_makes_no_land_of_waters() -> None:
    places = load()
    downtown = {"type": "Polygon", "coordinates": [HOLE]}
    county, narrow = set(cities_of(one(None), places)), set(cities_of(one(downtown), places))
    assert {CHICAGO} <= narrow < county
    assert verdict(one({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [0, 1]]]}), places) == "no_known_city"
    assert verdict(one(downtown, "092740"), places) == "marine"


def test_polygons_travel_with_their_alerts() -> None:
    """What the handler reads off the topic holds where what was posted held."""
    told, places = feed(0), load()
    records, unreadable = split(told, places, 0)
    read_back = [read_record(decode_context(encode_context(record)), places) for record in records]
    assert not unreadable and read_back == parse(told)
    assert sum(bool(alert.polygons) for alert in read_back if isinstance(alert, Alert)) == 19
