"""Is every place an event names turned into a city, no place, or an unknown one — and never an exception?"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.domain.places import UNKNOWN_PLACE, locate
from shared.gazetteer import load

CHICAGO, MONTREAL = 4887398, 6077243


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"city": "Chicago", "state": "IL"}, CHICAGO),
        ({"city": "chicago, il"}, CHICAGO),
        ({"city": "Montréal", "country": "CA"}, MONTREAL),
        ({"city": "Chicago", "state": None, "country": ""}, CHICAGO),
        ({"lat": 41.88, "lon": -87.63}, CHICAGO),
        ({"latitude": 41.88, "longitude": -87.63}, CHICAGO),
        ({"city": "", "lat": 41.88, "lon": -87.63}, CHICAGO),
        ({"city": "My home", "lat": 41.88, "lon": -87.63}, CHICAGO),
        ({"city": "Montreal", "lat": 41.88, "lon": -87.63}, MONTREAL),
        ({}, None),
        ({"city": None}, None),
        ({"city": "  "}, None),
        ({"state": "IL"}, None),
        ({"lat": None, "lon": None}, None),
        ({"city": "Nowhereville"}, UNKNOWN_PLACE),
        ({"city": "Chicago", "state": "ZZ"}, UNKNOWN_PLACE),
        ({"city": 7}, UNKNOWN_PLACE),
        ({"city": ["Chicago"]}, UNKNOWN_PLACE),
        ({"city": {"name": "Chicago"}}, UNKNOWN_PLACE),
        ({"city": "Chicago", "state": 17}, UNKNOWN_PLACE),
        ({"city": "c" * 10_000}, UNKNOWN_PLACE),
        ({"lat": 41.88}, UNKNOWN_PLACE),
        ({"lat": "41.88", "lon": "-87.63"}, UNKNOWN_PLACE),
        ({"lat": True, "lon": False}, UNKNOWN_PLACE),
        ({"lat": math.nan, "lon": -87.63}, UNKNOWN_PLACE),
        ({"lat": 41.88, "lon": math.inf}, UNKNOWN_PLACE),
        ({"lat": 141.88, "lon": -87.63}, UNKNOWN_PLACE),
        ({"lat": 10**400, "lon": -(10**400)}, UNKNOWN_PLACE),
        ({"lat": 0, "lon": 0}, UNKNOWN_PLACE),
    ],
)
def test_where_an_event_is(properties: dict[str, Any], expected: object) -> None:
    assert locate(properties, load()) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(["city", "state", "country", "lat", "lon", "latitude", "longitude"]), JSON))
def test_whatever_the_properties_it_answers(properties: dict[str, Any]) -> None:
    """Bad data is a value: an exception here would stop a partition."""
    found = locate(properties, load())
    assert found is None or found is UNKNOWN_PLACE or load().get(found) is not None
