"""Which city does a name, a point or a county code mean? (`city_id` = GeoNames id.)

Reads `places.tsv.gz` (built by `deploy/gazetteer/build.py`; licences in `ATTRIBUTION.md`) and nothing
else. Knows the United States with its territories, and Canada.
"""

from __future__ import annotations

from shared.gazetteer.places import Gazetteer, Place, load

__all__ = ["Gazetteer", "Place", "load"]
