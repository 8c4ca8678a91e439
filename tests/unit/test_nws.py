"""Are alerts read as the feed says them, and do they concern the right cities?

The recorded national feed is compared with counts made here by plain loops over its JSON and the gazetteer's
file, without the code under test.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import services.demo
from services.notifier.context.nws import (
    Alert,
    Unreadable,
    cities_of,
    from_contract,
    is_marine,
    parse,
    shift,
    valid_until,
    verdict,
)
from shared.gazetteer import load
from shared.gazetteer.places import DATA
from tests.support.polygons import cities_in

FEED = Path(services.demo.__path__[0]) / "feeds" / "nws-2025-12-15.json.gz"
CHICAGO, BUFFALO, MONTREAL = 4887398, 5110629, 6077243
SAVED = 1_765_835_626_000  # 2025-12-15T21:53:46Z

# The letters before the number of a marine zone (NWS Directive 10-302).
MARINE_ZONES = ["AM", "AN", "GM", "LC", "LE", "LH", "LM", "LO", "LS", "PH", "PK", "PM", "PS", "PZ", "SL"]


@pytest.fixture(scope="module")
def feed() -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(gzip.decompress(FEED.read_bytes()))
    return decoded


@pytest.fixture(scope="module")
def alerts(feed: dict[str, Any]) -> list[Alert]:
    parsed = parse(feed)
    assert not [a for a in parsed if isinstance(a, Unreadable)]
    return [a for a in parsed if isinstance(a, Alert)]


def cities_by_county() -> dict[str, set[str]]:
    """SAME code → ids, read off the gazetteer's file as a table."""
    out: dict[str, set[str]] = defaultdict(set)
    for row in csv.reader(io.StringIO(gzip.decompress(DATA.read_bytes()).decode()), delimiter="\t", quoting=3):
        if not row[0].startswith("#") and row[8]:
            out[row[8]].add(row[0])
    return out


def count(feed: dict[str, Any]) -> dict[str, int]:
    counties = cities_by_county()
    counted = dict.fromkeys(("features", "actual", "land", "marine", "matched", "over", "severe"), 0)
    cities: set[str] = set()
    for feature in feed["features"]:
        properties = feature["properties"]
        counted["features"] += 1
        counted["actual"] += properties["status"] == "Actual"
        zones = properties["geocode"]["UGC"]
        if all(zone[:2] in MARINE_ZONES for zone in zones):
            counted["marine"] += 1
            continue
        counted["land"] += 1
        here: set[str] = set()
        if feature["geometry"]:
            here = {str(city) for city in cities_in(feature["geometry"])}
        else:
            for code in properties["geocode"]["SAME"]:
                here |= counties.get(code, set())
        over = properties["urgency"] == "Past"
        counted["over"] += over
        if here and not over:
            counted["matched"] += 1
            counted["severe"] += properties["severity"] in ("Severe", "Extreme")
            cities |= here
    counted["cities"] = len(cities)
    return counted


def test_the_whole_feed_counts_as_an_independent_count_does(feed: dict[str, Any], alerts: list[Alert]) -> None:
    places = load()
    verdicts = [verdict(alert, places) for alert in alerts]
    matched = [alert for alert, v in zip(alerts, verdicts, strict=True) if v == "matched"]
    ours = {
        "features": len(alerts),
        "actual": sum(a.status == "Actual" for a in alerts),
        "land": sum(not is_marine(a) for a in alerts),
        "marine": verdicts.count("marine"),
        "matched": len(matched),
        "over": verdicts.count("over"),
        "severe": sum(a.severity in ("Extreme", "Severe") for a in matched),
        "cities": len({city for a in matched for city in cities_of(a, places)}),
    }
    assert ours == count(feed)
    assert ours["features"] == 529


def test_marine_by_county_code_is_marine_by_zone(alerts: list[Alert]) -> None:
    """Two codings of the same area, by different tables: SAME's state digits and UGC's letters."""
    for alert in alerts:
        by_code = {code[1:3] for code in alert.same}
        by_zone = {zone[:2] for zone in alert.ugc}
        assert is_marine(alert) == by_zone.issubset(MARINE_ZONES), (by_code, by_zone)


def chains(references: Iterator[tuple[str, list[str]]]) -> int:
    """How many sets of alerts are connected by references (union-find)."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    ids = []
    for alert_id, others in references:
        ids.append(alert_id)
        for other in others:
            parent[root(other)] = root(alert_id)
    return len({root(alert_id) for alert_id in ids})


def test_references_give_the_same_chains_as_the_json(feed: dict[str, Any], alerts: list[Alert]) -> None:
    listed = chains(
        (f["properties"]["id"], [r["identifier"] for r in f["properties"]["references"]]) for f in feed["features"]
    )
    assert chains((a.id, [r for r, _ in a.references]) for a in alerts) == listed
    assert 1 < listed <= 529
    assert all(sent > 0 for a in alerts for _, sent in a.references)


def test_an_alert_is_valid_until_the_earlier_end(feed: dict[str, Any], alerts: list[Alert]) -> None:
    for feature, alert in zip(feed["features"], alerts, strict=True):
        told = [feature["properties"].get(k) for k in ("expires", "ends")]
        ends = min(datetime.fromisoformat(t) for t in told if t)
        assert valid_until(alert) == ends.timestamp() * 1000


def test_shift_moves_every_instant_by_one_span(feed: dict[str, Any], alerts: list[Alert]) -> None:
    to = SAVED + 363 * 86_400_000 + 12_345
    moved = shift(feed, to)
    assert parse(json.dumps({"type": "FeatureCollection", **moved}).encode())
    by = to - SAVED
    assert datetime.fromisoformat(moved["updated"]).timestamp() * 1000 == to
    for before, after in zip(alerts, parse(moved), strict=True):
        assert isinstance(after, Alert)
        assert after == msgspec.structs.replace(
            before,
            sent_at=before.sent_at + by,
            onset_at=before.onset_at + by,
            expires_at=before.expires_at + by,
            ends_at=None if before.ends_at is None else before.ends_at + by,
            references=tuple((r, sent + by) for r, sent in before.references),
        )
    assert feed["updated"].startswith("2025-12-15T21:53:46"), "the feed given is left as it was"


def one(**properties: Any) -> Alert | Unreadable:
    base = {
        "id": "urn:1",
        "event": "Flood Warning",
        "status": "Actual",
        "messageType": "Alert",
        "severity": "Severe",
        "urgency": "Immediate",
        "certainty": "Likely",
        "sent": "2026-01-02T03:00:00Z",
        "expires": "2026-01-02T05:00:00Z",
        "geocode": {"SAME": ["017031"], "UGC": ["ILC031"]},
    }
    (parsed,) = parse({"type": "Feature", "properties": base | properties})
    return parsed


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({}, "matched"),
        ({"status": "Test"}, "test_or_draft"),
        ({"status": "Draft"}, "test_or_draft"),
        ({"status": "Exercise", "messageType": "Cancel"}, "test_or_draft"),
        ({"messageType": "Ack"}, "not_an_alert"),
        ({"messageType": "Cancel"}, "cancel"),
        ({"urgency": "Past"}, "over"),
        ({"geocode": {"SAME": ["092740"], "UGC": ["LMZ740"]}}, "marine"),
        ({"geocode": {"SAME": ["092740", "017031"], "UGC": ["LMZ740", "ILC031"]}}, "matched"),
        ({"geocode": {"UGC": ["LMZ740"]}}, "marine"),
        ({"geocode": {"SAME": ["064040"]}}, "no_known_city"),
        ({"geocode": {}}, "no_known_city"),
        ({"geocode": {"SAME": ["017000"]}}, "matched"),
        ({"expires": "2026-01-02T03:30:00Z"}, "expired"),
        ({"expires": "2026-01-03T05:00:00Z", "ends": "2026-01-02T03:30:00Z"}, "expired"),
    ],
)
def test_verdicts(properties: dict[str, Any], expected: str) -> None:
    alert = one(**properties)
    assert isinstance(alert, Alert)
    now = int(datetime.fromisoformat("2026-01-02T04:00:00Z").timestamp() * 1000)
    assert verdict(alert, load(), now) == expected


@pytest.mark.parametrize(
    "properties",
    [
        {"sent": None},
        {"sent": "yesterday"},
        {"sent": 5},
        {"expires": None},
        {"expires": "9999-99-99"},
        {"status": "Real"},
        {"messageType": None},
        {"event": ""},
        {"id": None},
        {"id": "x" * 1000},
    ],
)
def test_what_cannot_be_read_is_a_value_with_a_reason(properties: dict[str, Any]) -> None:
    unreadable = one(**properties)
    assert isinstance(unreadable, Unreadable) and unreadable.reason


def test_one_bad_feature_costs_no_other(feed: dict[str, Any]) -> None:
    features = [feed["features"][0], {"type": "Feature"}, None, 7, feed["features"][1]]
    kinds = [type(a) for a in parse({"type": "FeatureCollection", "features": features})]
    assert kinds == [Alert, Unreadable, Unreadable, Unreadable, Alert]


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"type": "FeatureCollection"}', b"\xff", b'{"type": 3}'])
def test_a_feed_that_is_none_is_one_unreadable(raw: bytes) -> None:
    assert [type(a) for a in parse(raw)] == [Unreadable]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["sent", "ends", "geocode", "references", "severity", "headline"]), JSON))
def test_parse_is_total(properties: dict[str, Any]) -> None:
    one(**properties)


BODY: dict[str, Any] = {
    "id": "a1",
    "kind": "alert",
    "areas": [{"city_id": str(BUFFALO)}],
    "severity": "Severe",
    "starts_at": "2026-01-02T03:00:00.000Z",
    "ends_at": "2026-01-02T09:00:00.000Z",
    "data": {"event": "Snow Squall"},
}


def test_the_contract_names_cities_in_five_ways() -> None:
    places = load()
    around_tulsa = [[-96.5, 35.5], [-95.5, 35.5], [-95.5, 36.5], [-96.5, 36.5]]
    areas = [
        {"city_id": BUFFALO}, {"same": "017031"}, {"city": "Montreal", "state": "QC"}, {"state": "Rhode Island"},
        {"polygon": around_tulsa},
    ]  # fmt: skip
    alert = from_contract(BODY | {"areas": areas, "replaces": ["a0"]}, places)
    found = set(cities_of(alert, places))
    tulsa = set(cities_in({"type": "Polygon", "coordinates": [around_tulsa]}))
    assert tulsa > {4553433} and {BUFFALO, CHICAGO, MONTREAL, *places.by_state("RI"), *tulsa} <= found
    assert alert.references == (("a0", 0),) and alert.message_type == "Update"
    assert valid_until(alert) - alert.sent_at == 6 * 3_600_000
    assert verdict(alert, places) == "matched" and alert.headline == "Snow Squall"
    assert from_contract(BODY, places).city_ids == (BUFFALO,)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "forecast"}, "kind"),
        ({"id": ""}, "id"),
        ({"id": 5}, "id"),
        ({"areas": []}, "areas"),
        ({"areas": "Chicago"}, "areas"),
        ({"areas": [5]}, "areas[0]"),
        ({"areas": [{"city_id": "5110629"}, {"city_id": 1}]}, "areas[1].city_id"),
        ({"areas": [{"city_id": "²"}]}, "areas[0].city_id"),
        ({"areas": [{"same": "17031"}]}, "areas[0].same"),
        ({"areas": [{"city": "Nowhereville"}]}, "Nowhereville"),
        ({"areas": [{"city": 5}]}, "areas[0]"),
        ({"areas": [{"state": "ZZ"}]}, "areas[0]"),
        ({"areas": [{}]}, "areas[0]"),
        ({"areas": [{"polygon": [[0, 0], [1, 1]]}]}, "areas[0].polygon"),
        ({"areas": [{"polygon": [[0, 0], [1, 1], [200, 0]]}]}, "areas[0].polygon"),
        ({"severity": "Bad"}, "severity"),
        ({"severity": []}, "severity"),
        ({"starts_at": "soon"}, "starts_at"),
        ({"ends_at": None}, "ends_at"),
        ({"ends_at": "2026-01-02T03:00:00Z"}, "later"),
        ({"replaces": "a0"}, "replaces"),
        ({"replaces": [1]}, "replaces"),
        ({"data": None}, "data"),
        ({"data": {}}, "data.event"),
        ({"data": {"event": "x\x00"}}, "data.event"),
        ({"data": {"event": "x", "headline": 5}}, "headline"),
        ({"data": {"event": "x", "status": "Maybe"}}, "status"),
    ],
)
def test_a_wrong_body_is_told_what_is_wrong(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        from_contract(BODY | change, load())
