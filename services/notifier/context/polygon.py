"""Which cities lie inside the polygons of an alert?

Polygons are those of GeoJSON (RFC 7946): rings of (longitude, latitude) in degrees, the outer one first, then the
holes. Pure. A point is inside by the even-odd rule: a ray to the east crosses the rings an odd number of times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from shared.gazetteer import Gazetteer

Ring = tuple[tuple[float, float], ...]
Polygon = tuple[Ring, ...]

MAX_POINTS = 20_000
"""Most points of one geometry; a county's outline has a few hundred."""


def read_geometry(geometry: Any) -> tuple[Polygon, ...]:
    """The polygons of a GeoJSON geometry, () where there is none. ValueError for what is no Polygon or MultiPolygon."""
    if geometry is None:
        return ()
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"geometry is neither Polygon nor MultiPolygon but {str(kind)[:40]}")
    listed = geometry.get("coordinates")
    several = [listed] if kind == "Polygon" else listed
    if not isinstance(several, list) or not all(isinstance(rings, list) and rings for rings in several):
        raise ValueError("geometry without rings")
    polygons = tuple(tuple(read_ring(ring) for ring in rings) for rings in several)
    if sum(len(ring) for polygon in polygons for ring in polygon) > MAX_POINTS:
        raise ValueError(f"geometry of more than {MAX_POINTS} points")
    return polygons


def read_ring(listed: Any) -> Ring:
    """A ring of at least three points, closed where it was not. ValueError says what is wrong with it."""
    if not isinstance(listed, list) or not 3 <= len(listed) <= MAX_POINTS:
        raise ValueError(f"a ring is a list of 3 to {MAX_POINTS} [longitude, latitude]")
    ring = [_point(point) for point in listed]
    if ring[0] != ring[-1]:
        ring.append(ring[0])
    return tuple(ring)


def _point(told: Any) -> tuple[float, float]:
    if isinstance(told, list) and len(told) >= 2:
        lon, lat = told[:2]
        numbers = all(isinstance(n, int | float) and not isinstance(n, bool) for n in (lon, lat))
        if numbers and -180 <= lon <= 180 and -90 <= lat <= 90:  # NaN fails both
            return float(lon), float(lat)
    raise ValueError(f"a point is [longitude, latitude] in degrees, not {str(told)[:60]}")


def contains(polygon: Polygon, lon: float, lat: float) -> bool:
    """Whether the point is inside the outer ring and in no hole. On an edge it may be either."""
    return sum(_crossings(ring, lon, lat) for ring in polygon) % 2 == 1


def _crossings(ring: Ring, lon: float, lat: float) -> int:
    found = 0
    for (x1, y1), (x2, y2) in pairwise(ring):
        # half-open, so that a corner on the ray belongs to one of its two edges
        if (y1 > lat) != (y2 > lat) and lon < x1 + (lat - y1) / (y2 - y1) * (x2 - x1):
            found += 1
    return found


def cities_inside(polygons: Iterable[Polygon], gazetteer: Gazetteer) -> set[int]:
    """Ids of the cities whose centre is inside any of them."""
    return {city_id for polygon in polygons for city_id in _inside(polygon, gazetteer)}


def _inside(polygon: Polygon, gazetteer: Gazetteer) -> Iterator[int]:
    lons, lats = zip(*polygon[0], strict=True)
    west, east = min(lons), max(lons)
    # wider than half the world: it crosses the antimeridian, and is looked at with that in the middle
    turned = east - west > 180
    if turned:
        polygon = tuple(tuple((lon % 360, lat) for lon, lat in ring) for ring in polygon)
        west, east = -180.0, 180.0
    for place in gazetteer.within(min(lats), west, max(lats), east):
        if contains(polygon, place.lon % 360 if turned else place.lon, place.lat):
            yield place.city_id
