"""Does a spelling, a point or a county code lead to the right city?"""

from __future__ import annotations

import csv
import gzip
import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.gazetteer import Gazetteer, load
from shared.gazetteer.names import key
from shared.gazetteer.places import DATA, distance_km

NEW_YORK, LOS_ANGELES, PHILADELPHIA, FORT_WORTH = 5128581, 5368361, 4560349, 4691930
WASHINGTON, MONTREAL, ST_LOUIS, SAN_JUAN = 4140963, 6077243, 4407066, 4568127
PORTLAND_ME, PORTLAND_OR, CHICAGO = 4975802, 5746545, 4887398


@pytest.fixture(scope="module")
def places() -> Gazetteer:
    return load()


@pytest.mark.parametrize(
    ("city", "state", "country", "expected"),
    [
        ("NYC", None, None, NEW_YORK),
        ("New York, NY", None, None, NEW_YORK),
        ("new york", "ny", None, NEW_YORK),
        ("New York City", "New York", "United States", NEW_YORK),
        ("LA", None, None, LOS_ANGELES),
        ("Philly", None, None, PHILADELPHIA),
        ("Portland", None, None, PORTLAND_OR),
        ("Portland, ME", None, None, PORTLAND_ME),
        ("Portland ME", None, None, PORTLAND_ME),
        ("portland", "maine", "usa", PORTLAND_ME),
        ("Ft Worth, Texas", None, None, FORT_WORTH),
        ("Ft. Worth", "US-TX", None, FORT_WORTH),
        ("Washington, D.C.", None, None, WASHINGTON),
        ("Washington DC", None, None, WASHINGTON),
        ("Montréal", None, None, MONTREAL),
        ("MONTREAL", "Québec", "CA", MONTREAL),
        ("St Louis", None, None, ST_LOUIS),
        ("  saint   louis ", "Mo", None, ST_LOUIS),
        ("San Juan", "PR", "US", SAN_JUAN),
        ("San Juan", None, "Puerto Rico", SAN_JUAN),
        ("Miami, Miami-Dade County, Florida", None, None, 4164138),
        ("Vancouver", None, "US", 5814616),
        ("Toronto, ON, Canada", None, None, 6167865),
        ("Ottawa, CA", None, None, 6094817),
        ("Hollywood, CA", None, None, LOS_ANGELES),
    ],
)
def test_spellings_of_a_city_lead_to_it(
    places: Gazetteer, city: str, state: str | None, country: str | None, expected: int
) -> None:
    assert places.normalise(city, state, country) == expected


@pytest.mark.parametrize(
    "told",
    [
        ("Nowhere, ZZ",),
        ("Paris, France",),
        ("Seattle", "WA", "France"),
        ("Chicago", "TX"),
        ("Nowhereville",),
        ("",),
        ("   ",),
        (",,,",),
        ("!?",),
        ("x" * 100_000,),
        ("Chicago", "ZZ"),
    ],
)
def test_what_is_not_known_is_not_guessed(places: Gazetteer, told: tuple[str, ...]) -> None:
    """Paris, France must not become Paris, Texas: the state and the country are part of the name."""
    assert places.normalise(*told) is None


def test_whoever_mistypes_is_told_what_there_is(places: Gazetteer) -> None:
    springfield = places.normalise("Springfield")
    assert springfield is not None
    assert [(p.name, p.state) for p in places.namesakes(springfield)][:2] == [
        ("Springfield", "MA"),
        ("Springfield", "IL"),
    ]
    assert springfield not in [p.city_id for p in places.namesakes(springfield)]
    assert [(p.name, p.state) for p in places.spelled_like("Springfeild, IL")] == [("Springfield", "IL")]
    assert places.spelled_like("Houton")[0].name == "Houston"
    assert places.spelled_like("") == places.spelled_like("78701") == ()


def test_county_codes(places: Gazetteer) -> None:
    """Against codes published by the Census Bureau, not against the file."""
    for city_id, code in ((NEW_YORK, "036061"), (LOS_ANGELES, "006037"), (CHICAGO, "017031"), (SAN_JUAN, "072127")):
        place = places.get(city_id)
        assert place is not None and place.same == code
        assert city_id in places.by_same(code)
        assert places.by_same("3" + code[1:]) == places.by_same(code), "part of a county is the county"
    montreal = places.get(MONTREAL)
    assert montreal is not None and montreal.same == ""


def test_a_code_ending_in_000_is_the_whole_state(places: Gazetteer) -> None:
    ohio = set(places.by_same("039000"))
    assert ohio and ohio == set(places.by_state("OH"))
    assert len(places.by_same("000000")) > 20_000
    assert MONTREAL not in places.by_same("000000")


@pytest.mark.parametrize("code", ["", "36061", "0360611", "abcdef", "٠٣٦٠٦١", "058999", "999999", "036999"])
def test_codes_that_are_none_have_no_cities(places: Gazetteer, code: str) -> None:
    assert places.by_same(code) == ()


@pytest.mark.parametrize(
    ("lat", "lon", "expected"),
    [
        (40.7128, -74.0060, NEW_YORK),
        (40.7580, -73.9855, NEW_YORK),  # Times Square: the centre of Weehawken, NJ, is nearer
        (40.7282, -74.0776, 5099836),  # Jersey City
        (41.8781, -87.6298, CHICAGO),
        (34.0522, -118.2437, LOS_ANGELES),
        (38.9072, -77.0369, WASHINGTON),
        (45.5017, -73.5673, MONTREAL),
        (0.0, 0.0, None),
        (-90.0, 180.0, None),
        (90.0, -180.0, None),
        (30.0, -60.0, None),
    ],
)
def test_points_lead_to_the_city_around_them(places: Gazetteer, lat: float, lon: float, expected: int | None) -> None:
    assert places.nearest(lat, lon) == expected


@given(st.floats(), st.floats())
def test_no_point_raises_and_none_is_beyond_50_km(lat: float, lon: float) -> None:
    found = load().nearest(lat, lon)
    if found is not None:
        place = load().get(found)
        assert place is not None and distance_km(lat, lon, place.lat, place.lon) < 51


def test_the_grid_misses_nothing(places: Gazetteer) -> None:
    """A place of the file that lies alone is found from every direction, across cell borders."""
    juneau = places.get(5554072)
    assert juneau is not None
    for lat, lon in ((0.3, 0.0), (-0.3, 0.0), (0.0, 0.6), (0.0, -0.6)):
        found = places.nearest(juneau.lat + lat, juneau.lon + lon)
        assert found is not None, "a town lies within 50 km"


@given(st.text(max_size=200), st.none() | st.text(max_size=20), st.none() | st.text(max_size=20))
def test_no_spelling_raises(city: str, state: str | None, country: str | None) -> None:
    load().normalise(city, state, country)


@given(st.text())
def test_a_key_is_its_own_key(text: str) -> None:
    """The file holds keys; looking one up must find it again."""
    assert key(key(text)) == key(text)


def test_the_file_is_whole() -> None:
    """Read by other means than the loader's: ids are unique, counties exist for (nearly) all of the US."""
    rows = list(csv.reader(io.StringIO(gzip.decompress(DATA.read_bytes()).decode()), delimiter="\t", quoting=3))
    header, body = rows[0], rows[1:]
    assert header[:3] == ["#city_id", "name", "state"] and len({r[0] for r in body}) == len(body) > 20_000
    states = {r[2] for r in body if r[3] == "US"}
    assert len(states) == 51
    assert sum(1 for r in body if r[3] != "CA" and not r[8]) <= 1
    assert DATA.stat().st_size < 1_000_000


def test_loading_is_quick() -> None:
    """Every service start pays for it; the bound is loose for a loaded machine."""
    started = time.perf_counter()
    load.__wrapped__()
    assert time.perf_counter() - started < 3
