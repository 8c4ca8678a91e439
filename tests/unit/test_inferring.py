"""Which plan traffic suggests: it accepts all of that traffic, can be read by a pack, and tells nobody's values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services import packs
from services.ingest.domain.inferring import LEAST_PER_VALUE, LEAST_USERS, Inference
from services.ingest.domain.intake import Posted
from services.ingest.domain.plan_text import written
from services.ingest.domain.plan_trial import Trial
from services.ingest.domain.tracking_plan import Plan
from shared.contracts.rules import Rules
from tests.support.people import shop


def inferred(events: list[Posted | None], least: int = 1) -> str:
    inference = Inference(least)
    for one in events:
        inference.see(one)
    return written(inference, ["Inferred in a test."])


def within(text: str, folder: Path) -> Rules:
    """The shop with a plan that was read from its text, as a pack is."""
    file = folder / "plan.yaml"
    file.write_text(text, encoding="utf-8")
    return packs.load_tracking_plan(file, shop())


def bought(user: int, **properties: Any) -> Posted:
    return Posted("Order Completed", properties, f"u{user}")


_NAMES = st.sampled_from(
    ["a", "revenue", "yes", "null", "1", "a: b", "# c", "<<", "é", "\U0001f600", "ann@example.com", "\x07", ""]
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["yes", "null", "1.5", "a: b", "'", '"', "\\", "\u2028", "\x85", "\ud7ff", "-", "- a", "&x", "*y"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
_EVENTS = st.lists(
    st.builds(
        Posted, st.sampled_from(["Order Completed", "on", "x: y"]), st.dictionaries(_NAMES, _VALUES, max_size=5), st.just("u")
    ),
    max_size=20,
)  # fmt: skip


@given(_EVENTS, st.integers(1, 4), st.integers(1, 12))
def test_an_inferred_plan_accepts_the_traffic_it_comes_from(
    tmp_path_factory: Any, events: list[Posted], least: int, times: int
) -> None:
    """Each of several users, so that values come to be listed; whatever was left out is unplanned, and allowed."""
    text = inferred([one._replace(user_id=f"u{n}") for one in events for n in range(times)], least)
    plan = Plan(within(text, tmp_path_factory.getbasetemp()))
    assert [v for one in events for v in plan.check(one.name, one.properties)[1]] == []
    assert "ann@example.com" not in text


def test_what_a_plan_says(tmp_path: Path) -> None:
    """And that it notices what is otherwise: it is no plan that allows everything."""
    events: list[Posted | None] = [
        bought(n % 7, order_id=f"o{n}", revenue=n * 1.5, channel="online" if n % 2 else "store", rating=n % 5,
               products=[{"sku": f"s{n}", "price": 2}], **({"coupon": f"C{n}"} if n % 4 == 0 else {}))
        for n in range(60)
    ]  # fmt: skip
    text = inferred([*events, None, Posted("$identify", {}, "u"), Posted("Rare", {}, "u")], least=2)
    assert (
        text
        == """\
# Inferred in a test.
# Left out: records that are no event of a user: 1.
# Left out: calls that carry no properties: 1.
# Left out: events seen less than 2 times: 1.
tracking_plan:
  events:
    Order Completed:  # 60 events
      on_violation: flag
      schema:
        required: [channel, order_id, products, rating, revenue]
        properties:
          channel: {enum: [online, store]}  # always
          coupon: {type: string}  # 15 of 60
          order_id: {type: string}  # always
          products:  # always
            type: array
            items:
              type: object
              required: [price, sku]
              properties:
                price: {type: integer}  # always; 2 to 2
                sku: {type: string}  # always
          rating: {type: integer}  # always; 0 to 4
          revenue: {type: number}  # always; 0 to 88.5
"""
    )
    good = {"order_id": "o", "revenue": 1, "channel": "store", "rating": 1, "products": []}
    plan = Plan(within(text, tmp_path))
    for wrong in (
        {"channel": "phone"}, {"revenue": "1"}, {"products": [{"sku": "s"}]}, {"rating": 1.5}, {"order_id": None},
    ):  # fmt: skip
        assert plan.check("Order Completed", good | wrong)[1], wrong
    assert not plan.check("Order Completed", good)[1]


def test_values_are_told_only_where_they_are_nobody_s() -> None:
    """Few of them, often, each of several users, of a name that is no person's; numbers likewise."""
    users, times = LEAST_USERS, 2 * LEAST_USERS * LEAST_PER_VALUE

    def text(of: int = users, value: Any = "secret", name: str = "channel") -> str:
        return inferred([bought(n // 2 % of, **{name: value if n % 2 else "other"}) for n in range(times)])

    assert "enum: [other, secret]" in text()
    assert "type: string" in text(value="other"), "one value is no list: the next one will come"
    assert "secret" not in text(value="secret 2.0"), "of versions and ids there is always another"
    assert "secret" not in text(of=users - 1)
    assert "secret" not in text(name="first_name") + text(name="userEmail") + text(name="ZIP")
    assert "415" not in text(value="+1 415 555 2671")
    assert "x" * 41 not in text(value="x" * 41)
    assert "; 4155 to 4155" in text(value=4155)
    assert "4155" not in text(value=4155, name="phone_number") + text(of=users - 1, value=4155)
    many = inferred([bought(n, code=f"secret{'abcdefghijklm'[n % 13]}") for n in range(1300)])
    assert "secret" not in many
    one = inferred([bought(n, channel=("secret", "other")[n % 2] if n else "rare") for n in range(100)])
    assert "secret" not in one, "a list without the rare one would not accept it"


def test_names_that_may_be_a_person_s_are_left_out() -> None:
    text = inferred([Posted("ann@example.com opened", {}, "u"), bought(1, **{"ann@example.com": 1, "a": 1})])
    assert "ann@" not in text
    assert "# Left out: events whose name may be a person's, or cannot be written: 1." in text
    assert "# Left out: properties of events with too many, or whose name may be a person's: 1." in text


def test_what_is_remembered_is_bounded() -> None:
    """Apps that make a name of every id exist."""
    inference = Inference(1)
    for n in range(700):
        inference.see(Posted(f"Event {n}", {}, "u"))
        inference.see(Posted("Event 1", {f"k{n}": n, "map": {f"k{n}": n}}, "u"))
    assert len(inference.events()) == 500
    assert len(inference.events()["Event 1"].properties) == 100
    assert inference.left_out() == [
        "events of more than 500 names: 200",
        "properties of events with too many, or whose name may be a person's: 1,201",
    ]
    assert "tracking_plan:\n  events: {}\n" in inferred([])


def test_a_trial_counts_what_would_become_of_events(tmp_path: Path) -> None:
    text = """\
tracking_plan:
  unplanned_events: flag
  events:
    Order Completed:
      on_violation: reject
      schema: {required: [order_id], properties: {revenue: {type: number}}}
    Feedback Given:
      on_violation: drop
      schema: {properties: {score: {type: integer}}}
    Never Seen:
      schema: {}
"""
    trial = Trial(within(text, tmp_path))
    told: list[Posted | None] = [
        bought(1, order_id="1"), bought(1, revenue="x"), bought(1, revenue="x", order_id="1"),
        Posted("Feedback Given", {"score": "9"}, "u"), Posted("Feedback Given", {"score": 9}, "u"),
        Posted("ann@example.com", {}, "u"), Posted("Product Viewed", {}, "u"), None,
    ]  # fmt: skip
    for one in told:
        trial.see(one)
    assert trial.told() == {
        "events": 8, "reject": 2, "drop": 1, "flag": 1,
        "items": [
            {"event": "Order Completed", "events": 3, "reject": 2, "drop": 0, "flag": 0, "reasons": [
                {"action": "reject", "reason": "schema_type:/revenue", "events": 2},
                {"action": "reject", "reason": "schema_required:/order_id", "events": 1},
            ]},
            {"event": "Feedback Given", "events": 2, "reject": 0, "drop": 1, "flag": 0, "reasons": [
                {"action": "drop", "reason": "schema_type:/score", "events": 1},
            ]},
            {"event": "Never Seen", "events": 0, "reject": 0, "drop": 0, "flag": 0, "reasons": []},
            {"event": "", "events": 2, "reject": 0, "drop": 0, "flag": 1, "reasons": [
                {"action": "flag", "reason": "unplanned_event", "events": 1},
            ]},
        ],
    }  # fmt: skip
