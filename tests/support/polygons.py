"""Whether a point lies in a polygon, told by winding number: how often a ring goes round the point.

Not the rule the product uses, so that both are wrong in the same place only by chance.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

from shared.gazetteer.places import DATA

Point = tuple[float, float]


def winds(ring: list[list[float]], lon: float, lat: float) -> bool:
    """Whether the angles under which the edges are seen from the point add up to whole turns other than none."""
    turned = 0.0
    for (x1, y1, *_), (x2, y2, *_) in zip(ring, [*ring[1:], ring[0]], strict=True):
        before, after = math.atan2(y1 - lat, x1 - lon), math.atan2(y2 - lat, x2 - lon)
        turned += (after - before + math.pi) % (2 * math.pi) - math.pi
    return round(turned / (2 * math.pi)) != 0


def inside(rings: list[list[list[float]]], lon: float, lat: float) -> bool:
    return winds(rings[0], lon, lat) and not any(winds(hole, lon, lat) for hole in rings[1:])


@cache
def _cities() -> list[tuple[int, float, float]]:
    rows = csv.reader(io.StringIO(gzip.decompress(DATA.read_bytes()).decode()), delimiter="\t", quoting=3)
    return [(int(row[0]), float(row[5]), float(row[4])) for row in rows if not row[0].startswith("#")]


def cities_in(geometry: dict[str, Any]) -> Iterator[int]:
    """Ids of the cities in a GeoJSON Polygon or MultiPolygon, read off the gazetteer's file."""
    several = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    for rings in several:
        south, north = min(p[1] for p in rings[0]), max(p[1] for p in rings[0])
        west, east = min(p[0] for p in rings[0]), max(p[0] for p in rings[0])
        for city_id, lon, lat in _cities():
            if west <= lon <= east and south <= lat <= north and inside(rings, lon, lat):
                yield city_id
