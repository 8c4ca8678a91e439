"""What a tracking plan finds wrong with an event, what becomes of it, and that nothing of the event itself is told."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.ingest.domain.intake import Intake, RawRecord, Refused, Taken, Verdict
from services.ingest.domain.tracking_plan import MAX_VIOLATIONS, Plan, SchemaFault, refusal
from services.packs import PackError, load_pack
from shared.contracts.identifiers import shard_of
from shared.contracts.tracking_plan import Action, PlannedEvent, TrackingPlan
from shared.gazetteer import load as load_gazetteer
from tests.support.people import T0, shop
from tests.unit.test_packs import GOOD, faults, write

ORDER: dict[str, Any] = {
    "required": ["order_id"],
    "properties": {
        "order_id": {"type": "string"},
        "revenue": {"type": "number", "minimum": 0},
        "channel": {"enum": ["online", "store"]},
        "products": {"items": {"required": ["price"], "properties": {"price": {"type": "number"}}}},
    },
}
SECRET = "ann@example.com"


def plan(schema: dict[str, Any], action: Action = "drop", **options: Any) -> Plan:
    return Plan(replace(shop(), tracking_plan=TrackingPlan({"Bought": PlannedEvent(schema, action)}, **options)))


def found(schema: dict[str, Any], properties: dict[str, Any]) -> list[str]:
    return [v.reason for v in plan(schema).check("Bought", properties)[1]]


@pytest.mark.parametrize(
    ("properties", "reasons"),
    [
        ({"order_id": "1", "revenue": 2, "extra": None}, []),
        ({}, ["schema_required:/order_id"]),
        ({"order_id": 1}, ["schema_type:/order_id"]),
        ({"order_id": "1", "revenue": "2"}, ["schema_type:/revenue"]),
        ({"order_id": "1", "revenue": -1}, ["schema_minimum:/revenue"]),
        ({"order_id": "1", "channel": SECRET}, ["schema_enum:/channel"]),
        ({"order_id": "1", "products": [{"price": 1}, {}]}, ["schema_required:/products/*/price"]),
        (
            {"revenue": "x", "channel": "x"},
            ["schema_required:/order_id", "schema_type:/revenue", "schema_enum:/channel"],
        ),
    ],
)
def test_each_property_that_is_wrong_is_named_once(properties: dict[str, Any], reasons: list[str]) -> None:
    assert sorted(found(ORDER, properties)) == sorted(reasons)


@pytest.mark.parametrize(
    ("schema", "properties", "reasons", "left"),
    [
        ({"additionalProperties": {"type": "number"}}, {SECRET: "x", "a": 1}, ["schema_type:/*"], {"a": 1}),
        ({"properties": {"a": {}}, "additionalProperties": False}, {SECRET: 1, "a": 1}, ["schema_additionalProperties:/"], {"a": 1}),
        ({"propertyNames": {"maxLength": 3}}, {SECRET: 1, "a": 1}, ["schema_propertyNames:/"], {"a": 1}),
        ({"properties": {"a/b": {"type": "null"}}}, {"a/b": 1, "c": 1}, ["schema_type:/a~1b"], {"c": 1}),
        ({"minProperties": 2}, {"a": 1}, ["schema_minProperties:/"], {"a": 1}),
        ({"properties": {"a": False}}, {"a": 1}, ["schema_falseSchema:/a"], {}),
        ({"properties": {"a": {"format": "date"}}}, {"a": "yesterday"}, ["schema_format:/a"], {}),
        ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, ["schema_required:/b"], {"a": 1}),
        # a property left out is not one that is missing; nor is one, in an object that is of the same schema
        ({"required": ["a"], "properties": {"a": {"type": "number"}}}, {"a": "x"}, ["schema_type:/a"], {}),
        ({"required": ["a"], "properties": {"b": {"$ref": "#"}}}, {"a": 1, "b": {}}, ["schema_required:/b/a"], {"a": 1}),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)  # fmt: skip
def test_drop_leaves_out_the_property_that_is_wrong(
    schema: dict[str, Any], properties: dict[str, Any], reasons: list[str], left: dict[str, Any]
) -> None:
    remaining, violations = plan(schema).check("Bought", properties)
    assert ([v.reason for v in violations], remaining, refusal(violations)) == (reasons, left, None)
    for action in ("flag", "reject"):
        assert plan(schema, action).check("Bought", properties)[0] == properties
    assert refusal(plan(schema, "reject").check("Bought", properties)[1]) == reasons[0]
    assert SECRET not in str(violations)


def test_what_is_unplanned_is_allowed_unless_the_plan_says_otherwise() -> None:
    for unplanned in ("allow", "flag", "reject"):
        asked = plan(ORDER, "drop", unplanned_events=unplanned, unplanned_properties=unplanned)
        refused = ("unplanned_event", "unplanned_property") if unplanned == "reject" else (None, None)
        _, event = asked.check("Other", {SECRET: 1})
        _, prop = asked.check("Bought", {"order_id": "1", SECRET: 1})
        assert (refusal(event), refusal(prop)) == refused
        assert [len(event), len(prop)] == [unplanned != "allow"] * 2
        assert SECRET not in str((event, prop))
        # what the pack knows by its signals, and calls that carry no properties, are no strangers
        assert asked.check("Product Viewed", {}) == asked.check("$identify", {}) == ({}, ())


def test_a_body_made_to_be_wrong_costs_no_more_than_a_few_looks() -> None:
    """The library would list all of its faults at once, thousands; all of it is in the wrong instead."""
    many = {f"k{n}": n for n in range(3000)}
    remaining, violations = plan({"additionalProperties": {"type": "string"}}).check("Bought", many)
    assert (len(violations), remaining) == (MAX_VIOLATIONS, {})
    few = {f"k{n}": n for n in range(MAX_VIOLATIONS)}
    assert plan({"additionalProperties": {"type": "string"}}).check("Bought", {**few, "a": "b"})[0] == {"a": "b"}
    deep: Any = {}
    for _ in range(600):
        deep = {"a": deep}
    remaining, violations = plan({"properties": {"x": {"const": {"a": 1}}}}).check("Bought", {"x": deep, "y": 1})
    assert ([v.reason for v in violations], remaining) == (["schema_depth:/"], {})


def test_no_pattern_is_slow() -> None:
    """Engines that go back take longer than the universe for this one."""
    assert found({"properties": {"a": {"pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}}}, {"a": "a" * 30_000})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c", "price"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*ORDER["properties"], "other"]), _JSON, max_size=5))
def test_what_drop_leaves_agrees_with_the_schema_but_for_what_is_missing(properties: dict[str, Any]) -> None:
    remaining, violations = plan(ORDER).check("Bought", properties)
    _, again = plan(ORDER).check("Bought", remaining)
    assert {v.keyword for v in again} <= {"required"}
    assert all(properties[name] == value for name, value in remaining.items())
    assert len(remaining) == len(properties) or violations


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"properties": {"a": {"type": "strin"}}}, "/properties/a/type: expected one of array, boolean,"),
        ({"required": "a"}, "/required: "),
        ({"properties": {"a": {"minLength": -1}}}, "/properties/a/minLength: "),
        ({"properties": {"a": {"$ref": "https://example.com/a.json"}}}, "/properties/a/$ref: 'https://example.com/a.json' is another document"),
        ({"$ref": "file:///etc/passwd"}, "/$ref: 'file:///etc/passwd' is another document"),
        ({"$ref": "#/$defs/a"}, "/: Pointer '/$defs/a' does not exist"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "/$schema: the dialect is draft 2020-12"),
        ({"properties": {"a": {"pattern": "(?=a)b"}}}, "/properties/a/pattern: no regular expression of linear time"),
        ({"properties": {"a": {"pattern": "(a{1000}){1000}"}}}, "/properties/a/pattern: no regular expression of linear time"),
        ({"patternProperties": {"(a)\\1": {}}}, "/patternProperties/(a)\\1: no regular expression of linear time"),
        ({"properties": {"a": {"format": "zip"}}}, "/properties/a/format: there is no such format"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_used_is_one_sentence(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(SchemaFault) as fault:
        plan(schema)
    assert str(fault.value).startswith(said)
    assert "\n" not in str(fault.value)


def test_a_pack_says_where_its_plan_is_wrong(tmp_path: Path) -> None:
    """All of it at once, by line, event and pointer; a bad action as any other field."""
    text = GOOD + (
        "tracking_plan:\n"
        "  events:\n"
        "    Application Opened:\n"
        "      schema:\n"
        "        properties:\n"
        "          version: {type: text}\n"
        "    $identify:\n"
        "      schema: {}\n"
        "    Bought:\n"
        "      on_violation: reject\n"
        "      schema:\n"
        "        $ref: https://example.com/bought.json\n"
    )
    lines = len(GOOD.splitlines())
    told = faults(write(tmp_path / "tiny", text))
    assert [(line - lines, message.partition(":")[2].strip()[:50]) for _, line, message in told] == [
        (6, "Application Opened: schema /properties/version/typ"),
        (7, "'$identify' is empty, too long, or a call that car"),
        (12, "Bought: schema /$ref: 'https://example.com/bought."),
    ]
    with pytest.raises(PackError, match="expected one of drop, reject, flag, not 'block'"):
        load_pack(write(tmp_path / "other", text.replace("reject", "block")))


# Within ingest.


@cache
def intake(action: Action = "reject") -> Intake:
    planned = {"Order Completed": PlannedEvent(ORDER, action)}
    return Intake(replace(shop(), tracking_plan=TrackingPlan(planned)), load_gazetteer(), 4)


def judged(properties: dict[str, Any], rules: Intake) -> Verdict:
    body = {"type": "track", "event": "Order Completed", "userId": "u", "messageId": "m", "properties": properties}
    return rules.judge(RawRecord(shard_of("u", 4), 1, b"u", json.dumps(body).encode(), {"source": b"app"}, T0))


def test_ingest_does_what_the_plan_says() -> None:
    wrong = {"order_id": "1", "revenue": "29.33", "coupon": "A", "products": [{"price": 1}]}
    refused = judged(wrong, intake("reject"))
    assert isinstance(refused, Refused)
    assert (refused.reason, len(refused.violations)) == ("schema_type:/revenue", 1)
    mended, flagged = judged(wrong, intake("drop")), judged(wrong, intake("flag"))
    assert isinstance(mended, Taken) and isinstance(flagged, Taken)
    assert mended.properties == {"order_id": "1", "coupon": "A"}
    assert flagged.properties == {"order_id": "1", "coupon": "A", "revenue": "29.33"}
    assert [(v.event, v.action, v.keyword) for v in (*mended.violations, *flagged.violations)] == [
        ("Order Completed", "drop", "type"),
        ("Order Completed", "flag", "type"),
    ]


def test_properties_are_checked_as_they_were_posted() -> None:
    """Also those the pack does not keep: a plan may be stricter than what is stored."""
    refused = judged({"order_id": "1", "products": [{"price": "x"}]}, intake())
    assert isinstance(refused, Refused) and refused.reason == "schema_type:/products/*/price"


@pytest.mark.parametrize(
    ("pack", "event", "properties", "expected"),
    [
        ("commerce", "Order Completed", {"order_id": 7, "revenue": "29.33"}, None),
        ("commerce", "Order Completed", {"revenue": 0}, None),
        ("commerce", "Order Completed", {"order_id": "7", "revenue": "USD 29"}, "schema_pattern:/revenue"),
        ("commerce_stages", "Order Completed", {"order_id": "7", "total": [1]}, "schema_type:/total"),
        ("commerce", "Order Refunded", {"revenue": 3}, "schema_required:/order_id"),
        ("commerce", "Feedback Given", {"score": 11}, None),
        ("weather", "Consent Preference Updated", {"categories": {"push": "false"}}, "schema_type:/categories/push"),
        ("weather", "Consent Preference Updated", {"categories": {"push": False, "ads": "no"}}, None),
        ("weather", "Push Notification Tapped", {}, None),
    ],
)
def test_the_plans_of_the_shipped_packs(
    pack: str, event: str, properties: dict[str, Any], expected: str | None
) -> None:
    assert refusal(Plan(load_pack(pack)).check(event, properties)[1]) == expected


def test_a_score_that_is_none_is_left_out() -> None:
    assert Plan(load_pack("commerce")).check("Feedback Given", {"score": 11})[0] == {}
