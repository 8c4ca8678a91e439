"""The laws of `decide` hold in a shop, where segments come and go with time; and an independent fold agrees."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.segmenter.domain.passing import tick
from services.segmenter.domain.state import CUSTOMER, LOYAL, REPEAT, Shop, decode_hot, encode_hot
from shared.contracts.events import Accepted, Context, Device
from shared.contracts.rules import Rates, Rules, Segment, Viewed
from tests.support import laws, oracle_days, oracle_person
from tests.support.oracle_fold import ROLES
from tests.support.people import DAY, HOUR, MINUTE, T0, Person, event, in_force, shop

LAW = settings(max_examples=60, deadline=None, database=None)

OTHER = msgspec.structs.replace(
    shop(),
    currency="EUR",
    segments=[
        Segment("undecided", "Cannot decide", viewed=Viewed(2, 3), not_ordered_days=2),
        Segment("fresh", "Ordered just now", ordered_days=1, activity=["new", "active"]),
        Segment("window", "Some time after an order", not_ordered_days=5, ordered_days=9, stage=["act", "convert"]),
        Segment("never", "No order for long, if ever", not_ordered_days=30, most={"views": 1}),
        Segment("thrifty", "Small orders", least={"orders": 1}, most={"average_order": 700, "score": 5}),
    ],
)
MIXED = msgspec.structs.replace(
    shop(), rates=Rates({"orders": 1, "views": 1}, {"orders": 2, "revenue": 900}, {"order_days": 2})
)
PLAIN = msgspec.structs.replace(shop(), rates=Rates({"order_days": 2}, {"revenue": 1}, {"cities": 1}))
BOTH: dict[str, Rules] = {"shipped": shop(), "other": OTHER}
STEPS = st.sampled_from([0, 1, MINUTE, HOUR, DAY, 2 * DAY, 3 * DAY, 7 * DAY, 20 * DAY, 60 * DAY, 90 * DAY, 200 * DAY])
LATENESS = st.sampled_from([0, 0, 0, 1, HOUR, 2 * DAY, 3 * DAY, 7 * DAY, 30 * DAY, 100 * DAY])
NAMES = st.sampled_from(
    ["Product Viewed"] * 3
    + ["Order Completed"] * 3
    + ["Order Refunded", "Order Cancelled", "Guide Viewed", "Coupon Applied", "Feedback Given", "Product Reviewed",
       "Referral Shared", "Product Added to Wishlist", "Application Opened", "Application Uninstalled", "$identify"]
)  # fmt: skip
CONTEXTS = st.sampled_from([None, None, Context(Device("d1", "ios", "t1"), "en"), Context(None, "es", None, "1.2")])


@st.composite
def told_of_orders(draw: st.DrawFn) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if draw(st.integers(0, 9)):
        told["order_id"] = draw(st.sampled_from(["a", "b", "c", "d"]))
    choices: dict[str, list[Any]] = {
        "revenue": [0.0, 3.5, 7, 29.33, -3.5, "x"],
        "refund_id": ["r1", "r2"],
        "currency": ["USD", "EUR", "JPY"],
        "channel": ["online", "store", "pickup", "moon"],
    }
    for name, values in choices.items():
        if draw(st.booleans()):
            told[name] = draw(st.sampled_from(values))
    return told


@st.composite
def lives(draw: st.DrawFn, most: int = 25) -> list[Accepted]:
    now, several = T0, []
    for _ in range(draw(st.integers(1, most))):
        now += draw(STEPS)
        name = draw(NAMES)
        told = draw(told_of_orders()) if name.startswith("Order") else {}
        if name == "Feedback Given":
            told = {"score": draw(st.sampled_from([0, 3, 6, 9, 10, 11, -1, 7.0, "9"]))}
        at = max(0, now - draw(LATENESS))
        several.append(event(name, at, received=now, properties=told, context=draw(CONTEXTS)))
    return several


class Judge:
    """The oracle's person beside the product's, over the same life and the same ticks."""

    def __init__(self, *versions: tuple[int, Rules]) -> None:
        self.versions = versions
        self.rules = in_force(*versions)
        self.person = Person(self.rules)
        books = [(since, oracle_person.Book(n, msgspec.to_builtins(r))) for n, (since, r) in enumerate(versions, 1)]
        self.history, self.book = books, books[-1][1]
        self.twin = oracle_person.Person("u")

    def see(self, one: Accepted) -> None:
        moment = max(one.received_at, self.person.last_tick)
        self.person.see(one)
        context = one.context
        device = context.device if context else None
        told = {name: getattr(one, name) for name in one.__struct_fields__} | {
            "context": context
            and {
                **{name: getattr(context, name) for name in context.__struct_fields__},
                "device": device and (device.id, device.type, device.token),
            }
        }
        self.twin.does(told, moment, self.book, self.history)

    def tick(self, moment: int) -> None:
        self.person.tick(moment)
        self.twin.comes_to(moment, self.book, self.history)

    def agree(self) -> None:
        hot, twin = self.person.state, self.twin
        told = [(c.kind, c.payload, c.occurred_at, c.cause_type, c.cause_id) for c in self.person.changes]
        assert told == [(r.kind, r.payload, r.occurred_at, r.cause_type, r.cause_id) for r in twin.rows]
        have = msgspec.to_builtins(hot.shop or Shop(), builtin_types=())
        have = dict(zip(Shop.__struct_fields__, have, strict=True))
        have |= {"orders": hot.orders, "order_days": hot.order_days, "revenue": hot.revenue}
        assert have | {"viewed_at": list(have["viewed_at"])} == twin.bought.kept()
        assert {role for bit, role in ROLES if hot.flags & bit} == twin.roles
        assert set(hot.segments) == twin.segments
        assert (hot.stage, hot.activity, hot.due_at) == (twin.stage, twin.pulse, twin.next_moment(self.book))
        counted = {(kind, name, day): n for (day, kind, name), n in self.person.daily.items() if n}
        assert counted == {key: n for key, n in oracle_days.of(twin, self.history).items() if n}

    def entering(self, since: int, rules: Rules) -> Judge:
        """The same two where the shard enters other rules at `since`."""
        after = Judge(*self.versions, (since, rules))
        self.person.rules = after.rules
        after.person, after.twin = self.person, self.twin
        return after


@pytest.mark.parametrize("which", BOTH)
@LAW
@given(life=lives(), data=st.data())
def test_an_independent_fold_agrees(which: str, life: list[Accepted], data: st.DataObject) -> None:
    """It keeps every event for ever and asks the whole list each time: no totals, no bounds, no due moments."""
    judge = Judge((0, BOTH[which]))
    for one in life:
        judge.see(one)
        if data.draw(st.booleans()):
            judge.tick(one.received_at + data.draw(STEPS))
    judge.agree()
    judge.tick(life[-1].received_at + 400 * DAY)
    judge.agree()


@pytest.mark.parametrize("which", BOTH)
@LAW
@given(life=lives(), to_a=STEPS, to_b=STEPS)
def test_two_ticks_are_the_later_one(which: str, life: list[Accepted], to_a: int, to_b: int) -> None:
    laws.two_ticks_are_the_later_one(in_force((0, BOTH[which])), life, to_a, to_b)


@pytest.mark.parametrize("which", BOTH)
@LAW
@given(life=lives(), data=st.data())
def test_it_does_not_matter_who_notices_that_a_moment_passed(
    which: str, life: list[Accepted], data: st.DataObject
) -> None:
    laws.who_notices_does_not_matter(in_force((0, BOTH[which])), life, data, 400 * DAY)


@pytest.mark.parametrize("which", BOTH)
@LAW
@given(life=lives())
def test_due_is_the_first_moment_at_which_anything_changes(which: str, life: list[Accepted]) -> None:
    laws.due_is_when_something_changes(in_force((0, BOTH[which])), life, 40)


@LAW
@given(life=lives(), gap=STEPS, later=STEPS)
def test_rules_that_ask_for_other_spans_are_entered_at_their_moment(life: list[Accepted], gap: int, later: int) -> None:
    """Someone who slept through it goes through it all the same, and an independent fold sees the same."""
    since = life[-1].received_at + gap
    judge = Judge((0, shop()))
    for one in life:
        judge.see(one)
    asleep = judge.entering(since, OTHER)
    stepped, reached, _ = tick(asleep.person.state, since, in_force((0, shop())))
    stepped, entered, _ = tick(stepped, since, asleep.rules)
    stepped, rest, _ = tick(stepped, since + later, asleep.rules)
    told = len(asleep.person.changes)
    asleep.tick(since + later)
    assert asleep.person.state == stepped
    assert asleep.person.changes[told:] == reached + entered + rest
    asleep.agree()


@LAW
@given(life=lives(), data=st.data())
def test_who_counts_since_when_survives_other_rules(life: list[Accepted], data: st.DataObject) -> None:
    """Orders told late, cancelled and refunded before and after other thresholds came in, also for what is no order."""
    judge = Judge((0, data.draw(st.sampled_from([shop(), MIXED]))))
    for one in life:
        if data.draw(st.integers(0, 3)) == 0:
            since = max(judge.twin.now, 0)
            judge = judge.entering(since, data.draw(st.sampled_from([shop(), MIXED, PLAIN])))
        judge.see(one)
    judge.tick(judge.twin.now + data.draw(STEPS))
    judge.agree()


@LAW
@given(life=lives(), data=st.data())
def test_repeats_and_a_restart_change_nothing(life: list[Accepted], data: st.DataObject) -> None:
    of = in_force((0, shop()))
    once, often = Person(of).all(life), Person(of)
    for index, one in enumerate(life):
        often.see(one)
        again = life[data.draw(st.integers(0, index))]
        often.see(msgspec.structs.replace(again, received_at=one.received_at, src=10_000 + index))
        often.hot = decode_hot(encode_hot(often.state))
    assert (often.state, often.changes, often.cold) == (once.state, once.changes, once.cold)


@LAW
@given(life=lives())
def test_the_cold_part_is_looked_at_only_where_it_was_said(life: list[Accepted]) -> None:
    laws.cold_is_looked_at_only_where_it_was_said(in_force((0, shop())), life)


def test_three_views_and_no_order_make_undecided_until_the_third_last_is_a_week_old() -> None:
    person = Person(in_force((0, shop())))
    for number in range(4):
        person.see(event("Product Viewed", T0 + number * DAY))
    assert "undecided" in person.state.segments
    person.tick(T0 + 20 * DAY)
    moves = [(c.kind, c.occurred_at, c.cause_type) for c in person.changes if c.payload.get("segment") == "undecided"]
    assert moves == [
        ("segment_entered", T0 + 2 * DAY, "event"),
        ("segment_exited", T0 + DAY + 7 * DAY, "tick"),
    ]


def test_an_order_decides_and_a_refund_makes_undecided_again() -> None:
    person = Person(in_force((0, shop())))
    for number in range(3):
        person.see(event("Product Viewed", T0 + number * HOUR))
    person.see(event("Order Completed", T0 + 4 * HOUR, properties={"order_id": "a", "revenue": 60.0}))
    assert not {"undecided"} & set(person.state.segments)
    assert {"price_high", "one_order"} <= set(person.state.segments)
    person.see(event("Order Cancelled", T0 + 5 * HOUR, properties={"order_id": "a"}))
    assert "undecided" in person.state.segments
    assert "one_order" not in person.state.segments


def test_a_customer_is_at_risk_after_90_days_and_lapsed_after_180() -> None:
    """Whatever else they do: looking is not buying."""
    person = Person(in_force((0, shop())))
    person.see(event("Order Completed", T0, properties={"order_id": "a", "revenue": 60.0}))
    person.see(event("Application Opened", T0 + 80 * DAY))
    person.tick(T0 + 400 * DAY)
    moves = [
        (c.kind, c.payload["segment"], (c.occurred_at - T0) // DAY)
        for c in person.changes
        if c.kind.startswith("segment_") and str(c.payload["segment"]).startswith("customers_")
    ]
    assert moves == [
        ("segment_entered", "customers_at_risk", 90),
        ("segment_exited", "customers_at_risk", 180),
        ("segment_entered", "customers_lapsed", 180),
    ]


def test_a_busy_customer_fits_into_600_bytes() -> None:
    """Larger rows cost Postgres two to three times as much."""
    person = Person(in_force((0, shop())))
    for number in range(300):
        at = T0 + number * DAY
        told = {"order_id": f"{number:032}", "revenue": 49.99, "channel": "online"}
        person.see(event("Order Completed", at, properties=told, context=Context(None, "en", None, None, "newsletter")))
        for name in ("Product Viewed", "Guide Viewed", "Coupon Applied", "Product Added to Wishlist", "Product Reviewed",
                     "Referral Shared"):  # fmt: skip
            person.see(event(name, at + HOUR))
        person.see(event("Feedback Given", at, properties={"score": 6}))
    assert person.state.flags == CUSTOMER | REPEAT | LOYAL
    assert len(encode_hot(person.state)) <= 600
