"""How places are held in memory and found by id, name, point or SAME code."""

from __future__ import annotations

import difflib
import functools
import gzip
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from shared.gazetteer.names import ELSEWHERE, FIPS_STATES, NO_CITIES, US_COUNTRIES, country_code, key, state_code

DATA = Path(__file__).with_name("places.tsv.gz")
COLUMNS = (
    "city_id", "name", "state", "country", "lat", "lon", "timezone", "population", "same", "own_keys", "alias_keys",
)  # fmt: skip

REACH_KM = 50.0
RADIUS_KM_PER_ROOT = 0.0015
MAX_RADIUS_KM = 4.0
_CELL_DEGREES = 0.5
_CELLS_AROUND = round(360 / _CELL_DEGREES)
_KM_PER_DEGREE = 111.195


LARGE = 500_000
"""So many people make it likely that a city is meant by a name that means something else, too."""
POSTAL = re.compile(r"(?<=[\s,])(?:\d{5}(?:-\d{4})?|[A-Z]\d[A-Z] ?\d[A-Z]\d)(?=\s*(?:,|$))", re.ASCII | re.IGNORECASE)
_AIRPORT = 3
_DIRECTIONS = {"n": "north", "s": "south", "e": "east", "w": "west"}
_CALLED = ("city of ", "town of ", "village of ", "ville de ")


class Place(msgspec.Struct, frozen=True, gc=False):
    """A city. `state` is a two-letter state or province; `same` is "" outside the United States."""

    city_id: int
    name: str
    state: str
    country: str
    lat: float
    lon: float
    timezone: str
    population: int
    same: str


class Gazetteer:
    """Immutable after construction; every method is pure. Names resolve to the most populous match."""

    def __init__(self, rows: Iterable[tuple[Place, Sequence[str], Sequence[str]]]) -> None:
        """`rows` come most populous first: place, keys of its own names, keys of its other names."""
        self._places: dict[int, Place] = {}
        self._own: dict[str, list[int]] = {}
        self._other: dict[str, list[int]] = {}
        self._joined: dict[str, list[int]] = {}
        self._by_same: dict[str, list[int]] = {}
        self._cells: dict[tuple[int, int], list[tuple[float, float, float, int]]] = {}
        for place, own, other in rows:
            city_id = place.city_id
            self._places[city_id] = place
            for name in own:
                self._own.setdefault(name, []).append(city_id)
                self._joined.setdefault(name.replace(" ", ""), []).append(city_id)
            for name in other:
                self._other.setdefault(name, []).append(city_id)
            if place.same:
                self._by_same.setdefault(place.same, []).append(city_id)
            cell = (math.floor(place.lat / _CELL_DEGREES), math.floor(place.lon / _CELL_DEGREES) % _CELLS_AROUND)
            radius = min(MAX_RADIUS_KM, RADIUS_KM_PER_ROOT * math.sqrt(place.population))
            self._cells.setdefault(cell, []).append((place.lat, place.lon, radius, city_id))
        self.zones = frozenset(place.timezone for place in self._places.values())

    def __len__(self) -> int:
        return len(self._places)

    def get(self, city_id: int) -> Place | None:
        return self._places.get(city_id)

    def by_same(self, code: str) -> tuple[int, ...]:
        """Cities of a SAME location code, most populous first; () when none is known.

        `PSSCCC`: the part of the county (P) is ignored, CCC = 000 is the whole state, 000000 the
        whole country (47 CFR 11.31).
        """
        if len(code) != 6 or not (code.isascii() and code.isdigit()):
            return ()
        code = "0" + code[1:]
        if code == "000000":
            return tuple(p.city_id for p in self._places.values() if p.country in US_COUNTRIES)
        if code.endswith("000"):
            return tuple(p.city_id for p in self._places.values() if p.same.startswith(code[:3]))
        return tuple(self._by_same.get(code, ()))

    def by_state(self, state: str) -> tuple[int, ...]:
        """Cities of a state or province, by code or name; () when it is not known."""
        code = state_code(state)
        return tuple(p.city_id for p in self._places.values() if p.state == code) if code else ()

    def within(self, south: float, west: float, north: float, east: float) -> Iterator[Place]:
        """Cities in a box of degrees, edges included; the box does not cross the antimeridian."""
        columns = range(math.floor(west / _CELL_DEGREES), math.floor(east / _CELL_DEGREES) + 1)
        for row in range(math.floor(south / _CELL_DEGREES), math.floor(north / _CELL_DEGREES) + 1):
            for column in columns:
                for lat, lon, _, city_id in self._cells.get((row, column % _CELLS_AROUND), ()):
                    if south <= lat <= north and west <= lon <= east:
                        yield self._places[city_id]

    def normalise(self, city: str, state: str | None = None, country: str | None = None) -> int | None:
        """The city a spelling means: `NYC`, `Portland, ME`, `Ft Worth` + `Texas`; None when unknown.

        A state or country that is given but not known makes the city unknown: Paris, France is not
        Paris, Texas. A name without either is its most populous bearer, but not where it means something
        else far more often: a city elsewhere, a state, an airport.
        """
        head, *tail = [part for part in (part.strip() for part in POSTAL.sub("", city).split(",")) if part] or [""]
        name = key(head)
        if not name:
            return None
        states = {code for code in (state_code(state) if state and state.strip() else None,) if code}
        countries = {code for code in (country_code(country) if country and country.strip() else None,) if code}
        if (state and state.strip() and not states) or (country and country.strip() and not countries):
            return None
        for part in tail:
            as_state, as_country = state_code(part), country_code(part)
            if as_state and not (states and as_country):
                states.add(as_state)
            elif as_country:
                countries.add(as_country)
            elif not key(part).endswith(" county"):
                return None
        if not states and not self._means_a_city(head, name, alone=not countries):
            return None
        found = self._find(name, states, countries)
        if found is None and not state and tail and len(states) == 1 and (alone := country_code(tail[-1])):
            found = self._find(name, set(), countries | {alone})
        if found is None and not states:
            found = self._with_state_behind(name, countries)
        return found

    def _means_a_city(self, head: str, name: str, alone: bool) -> bool:
        """Whether a name without a state is taken for a city at all."""
        if alone and (name in ELSEWHERE or name in NO_CITIES):
            return False
        least = LARGE if state_code(name) else 0
        if alone and len(head) == _AIRPORT and head.isalpha() and head.isupper():
            least = max(least, LARGE // 5)
        return not least or any(self._places[city_id].population >= least for city_id in self._named(name))

    def _with_state_behind(self, name: str, countries: set[str]) -> int | None:
        """`portland me`, `chicago il usa`: what no comma sets apart."""
        words = name.split()
        for count in range(1, min(4, len(words))):
            if code := state_code(" ".join(words[-count:])):
                return self._find(" ".join(words[:-count]), {code}, countries, whole=True)
        for count in range(1, min(5, len(words))):
            if code := country_code(" ".join(words[-count:])):
                before = " ".join(words[:-count])
                found = self._find(before, set(), countries | {code}, whole=True)
                return self._with_state_behind(before, countries | {code}) if found is None else found
        return None

    def _find(self, name: str, states: set[str], countries: set[str], whole: bool = False) -> int | None:
        """The most populous city of a name within these states and countries; `City` may be missing or too much, unless
        the name has to be taken as a `whole`."""
        for spelled in _spellings(name):
            loose = spelled.removesuffix(" city") if spelled.endswith(" city") else spelled + " city"
            for city_id in self._named(spelled):
                if self._lies_in(city_id, states, countries):
                    return city_id
            for city_id in self._named(loose) if not whole else ():
                large = states or self._places[city_id].population >= LARGE
                if large and self._lies_in(city_id, states, countries):
                    return city_id
        for city_id in self._joined.get(name.replace(" ", ""), ()):
            if self._lies_in(city_id, states, countries):
                return city_id
        return None

    def _named(self, name: str) -> Iterator[int]:
        """Cities of their own name first, then those that are also called so."""
        yield from self._own.get(name, ())
        yield from self._other.get(name, ())

    def _lies_in(self, city_id: int, states: set[str], countries: set[str]) -> bool:
        place = self._places[city_id]
        return (not states or states == {place.state}) and all(
            country == place.country or (country == "US" and place.country in US_COUNTRIES) for country in countries
        )

    def namesakes(self, city_id: int) -> tuple[Place, ...]:
        """Other cities of the same name, most populous first."""
        name = key(self._places[city_id].name)
        return tuple(self._places[other] for other in self._own.get(name, ()) if other != city_id)

    def spelled_like(self, city: str, most: int = 3) -> tuple[Place, ...]:
        """Cities whose names look most like this one's, most populous first; one of each name. In the state that
        follows a comma, where it is one. For people who mistyped: it looks at every name there is."""
        head, _, tail = city.partition(",")
        state = state_code(tail)
        names = [
            name
            for name, ids in self._own.items()
            if state is None or any(self._places[city_id].state == state for city_id in ids)
        ]
        found = []
        for name in difflib.get_close_matches(key(head), names, n=most, cutoff=0.75):
            ids = [c for c in self._own[name] if state in (None, self._places[c].state)]
            found.append(self._places[ids[0]])
        return tuple(sorted(found, key=lambda place: -place.population))

    def nearest(self, lat: float, lon: float) -> int | None:
        """The city a point lies in or next to; None when no centre is within 50 km, or the point is impossible.

        The distance to a centre counts less the city's radius, so that Times Square is in New York and not
        in Weehawken, whose centre is nearer.
        """
        if not (-90 <= lat <= 90 and -180 <= lon <= 180):  # NaN fails both
            return None
        shrink = max(math.cos(math.radians(lat)), 0.01)
        row, column = math.floor(lat / _CELL_DEGREES), math.floor(lon / _CELL_DEGREES)
        rows = math.ceil(REACH_KM / _KM_PER_DEGREE / _CELL_DEGREES)
        columns = min(math.ceil(REACH_KM / (_KM_PER_DEGREE * shrink) / _CELL_DEGREES), _CELLS_AROUND // 2 - 1)
        best, best_km = None, math.inf
        for r in sorted(range(row - rows, row + rows + 1), key=lambda r: abs(r - row)):
            south = max(r * _CELL_DEGREES - lat, lat - (r + 1) * _CELL_DEGREES, 0.0) * _KM_PER_DEGREE
            if south - MAX_RADIUS_KM >= best_km:
                continue
            for c in sorted(range(column - columns, column + columns + 1), key=lambda c: abs(c - column)):
                west = max(c * _CELL_DEGREES - lon, lon - (c + 1) * _CELL_DEGREES, 0.0) * _KM_PER_DEGREE * shrink * 0.98
                if math.hypot(south, west) - MAX_RADIUS_KM >= best_km:
                    continue
                for other_lat, other_lon, radius, city_id in self._cells.get((r, c % _CELLS_AROUND), ()):
                    east = abs(other_lon - lon)
                    flat = math.hypot(other_lat - lat, (360 - east if east > 180 else east) * shrink) * _KM_PER_DEGREE
                    if flat <= REACH_KM and flat - radius < best_km:
                        best, best_km = city_id, flat - radius
        return best


def _spellings(name: str) -> Iterator[str]:
    yield name
    first, _, rest = name.partition(" ")
    if rest and first in _DIRECTIONS:
        yield f"{_DIRECTIONS[first]} {rest}"
    for called in _CALLED:
        if name.startswith(called):
            yield name.removeprefix(called)


def distance_km(lat_a: float, lon_a: float, lat_b: float, lon_b: float) -> float:
    """Great-circle distance (haversine, sphere of 6371 km)."""
    a, b = math.radians(lat_a), math.radians(lat_b)
    half = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(math.radians(lon_b - lon_a) / 2) ** 2
    return 2 * 6371.0 * math.asin(min(1.0, math.sqrt(half)))


def _row(line: str) -> tuple[Place, Sequence[str], Sequence[str]]:
    city_id, name, state, country, lat, lon, timezone, population, same, own, other = line.split("\t")
    place = Place(int(city_id), name, state, country, float(lat), float(lon), timezone, int(population), same)
    return place, own.split("|"), other.split("|") if other else ()


@functools.cache
def load(path: Path = DATA) -> Gazetteer:
    """The shipped gazetteer, read once per process."""
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        lines = file.read().splitlines()
    return Gazetteer(_row(line) for line in lines if not line.startswith("#"))


__all__ = ["COLUMNS", "DATA", "FIPS_STATES", "Gazetteer", "Place", "distance_km", "load"]
