"""What must hold of `decide` and `tick` whatever happens to a user: the laws everything else rests on."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.segmenter.domain import dedup
from services.segmenter.domain.passing import tick
from services.segmenter.domain.state import Change, Hot, decode_hot, encode_hot
from services.segmenter.domain.visited import visits
from shared.contracts.events import Accepted, Context, Device
from shared.contracts.identifiers import message_hash
from shared.contracts.rules import Segment
from tests.support import laws
from tests.support.people import (
    BOSTON,
    CHICAGO,
    DAY,
    HOUR,
    MINUTE,
    NEW_YORK,
    T0,
    Person,
    event,
    in_force,
    weather,
    with_days,
)

LAW = settings(max_examples=50, deadline=None, database=None)

CITY_EVENTS = ("Default City Set", "City Searched", "City Added", "City Removed")
PLAIN_EVENTS = (
    "Application Opened", "Screen Viewed", "Application Backgrounded", "Application Uninstalled", "$identify", "$screen",
    "Push Notification Received",
)  # fmt: skip
STEPS = st.sampled_from([0, 1, MINUTE, 31 * MINUTE, HOUR, DAY, 5 * DAY, 7 * DAY, 13 * DAY, 14 * DAY, 16 * DAY, 30 * DAY,
                         31 * DAY, 89 * DAY, 91 * DAY])  # fmt: skip
LATENESS = st.sampled_from([0, 0, 0, 1, MINUTE, HOUR, 3 * DAY, 8 * DAY, 14 * DAY, 20 * DAY, 30 * DAY, 33 * DAY])
CONTEXTS = st.sampled_from(
    [
        None,
        Context(Device("d1", "ios", "t1"), "en", "America/New_York"),
        Context(Device("d2", "android", "t2"), "es", None, "1.2", "mail"),
        Context(Device("d3", "android", "t1"), "en"),
    ]
)


@st.composite
def _one(draw: st.DrawFn, now: int) -> Accepted:
    kind = draw(st.integers(0, 9))
    properties: dict[str, Any] = {}
    city = None
    if kind < 4:
        name = draw(st.sampled_from(CITY_EVENTS))
        city = draw(st.sampled_from([NEW_YORK, CHICAGO, BOSTON, *range(100, 109)]))
    elif kind < 9:
        name = draw(st.sampled_from(PLAIN_EVENTS))
    else:
        name = "Consent Preference Updated"
        purposes = st.sampled_from(["location", "search_history", "push"])
        properties = {"categories": draw(st.dictionaries(purposes, st.booleans()))}
    at = max(0, now - draw(LATENESS))
    return event(name, at, received=now, city=city, properties=properties, context=draw(CONTEXTS))


@st.composite
def lives(draw: st.DrawFn, most: int = 25) -> list[Accepted]:
    """Events of one user in the order they were received."""
    now, several = T0, []
    for _ in range(draw(st.integers(1, most))):
        now += draw(STEPS)
        several.append(draw(_one(now)))
    return several


RULES = in_force((0, weather()))


@LAW
@given(lives(), STEPS, STEPS)
def test_two_ticks_are_the_later_one(life: list[Accepted], to_a: int, to_b: int) -> None:
    laws.two_ticks_are_the_later_one(RULES, life, to_a, to_b)


@LAW
@given(lives(), st.data())
def test_it_does_not_matter_who_notices_that_a_moment_passed(life: list[Accepted], data: st.DataObject) -> None:
    laws.who_notices_does_not_matter(RULES, life, data, 200 * DAY)


@LAW
@given(lives(), st.data())
def test_repeats_change_nothing(life: list[Accepted], data: st.DataObject) -> None:
    """A client posts again until it is told 200: the same message id counts once, wherever its repeats lie."""
    end = life[-1].received_at + 200 * DAY
    once = Person(RULES).all(life)
    once.tick(end)
    often = Person(RULES)
    for index, one in enumerate(life):
        often.see(one)
        for _ in range(data.draw(st.integers(0, 2))):
            again = life[data.draw(st.integers(0, index))]
            repeat = msgspec.structs.replace(again, received_at=one.received_at, src=10_000 + index)
            often.see(repeat)
    often.tick(end)
    assert often.changes == once.changes
    assert often.state == once.state


@LAW
@given(lives(40))
def test_entered_and_exited_alternate(life: list[Accepted]) -> None:
    """Tallies are sums of these: one entry too many is a user counted twice for ever."""
    person = Person(RULES).all(life)
    person.tick(life[-1].received_at + 200 * DAY)
    inside: set[tuple[Any, ...]] = set()
    for change in person.changes:
        if not change.kind.startswith(("segment_", "cohort_")):
            continue
        what = tuple(sorted(change.payload.items()))
        if change.kind.endswith("_entered"):
            assert what not in inside, change
            inside.add(what)
        else:
            assert what in inside, change
            inside.remove(what)
    hot = person.state
    segments = {("segment", s) for s in hot.segments}
    cohorts = {("searched", v.city_id) for v in visits(hot.searched)} | {
        ("added", v.city_id) for v in visits(hot.added)
    }
    cohorts |= {("default", hot.default_city)} if hot.default_city else set()
    assert {w[0] for w in inside if w[0][0] == "segment"} == segments
    assert {(dict(w)["relation"], dict(w)["city_id"]) for w in inside if w[0][0] != "segment"} == cohorts


BY_EVENT = {
    (None, "new"), (None, "inactive"), (None, "uninstalled"), ("inactive", "new"), ("uninstalled", "new"),
    ("at_risk", "active"), ("inactive", "reactivated"), ("lapsed", "reactivated"), ("uninstalled", "reactivated"),
    ("new", "uninstalled"), ("active", "uninstalled"), ("at_risk", "uninstalled"), ("inactive", "uninstalled"),
    ("lapsed", "uninstalled"), ("reactivated", "uninstalled"), ("lapsed", "inactive"),
}  # fmt: skip
BY_TIME = {
    ("new", "active"), ("new", "at_risk"), ("active", "at_risk"), ("at_risk", "inactive"), ("inactive", "lapsed"),
    ("reactivated", "active"), ("reactivated", "at_risk"),
}  # fmt: skip


@LAW
@given(lives(40))
def test_activity_moves_only_along_the_table(life: list[Accepted]) -> None:
    person = Person(RULES).all(life)
    person.tick(life[-1].received_at + 200 * DAY)
    before: object = None
    for change in person.changes:
        if change.kind == "activity_changed":
            assert change.payload["from"] == before
            step = (before, change.payload["to"])
            assert step in (BY_TIME if change.cause_type == "tick" else BY_EVENT)
            before = change.payload["to"]
    assert before == person.state.activity


@LAW
@given(lives(), STEPS)
def test_thirty_days_divide_all_users(life: list[Accepted], later: int) -> None:
    """`active_30d` and `inactive_30d` are the seed's definition of the product: exactly one, by the age of the last
    activity. Whoever removed the app, or never did anything, is inactive. Searches end after as many days."""
    person = Person(RULES)
    for one in life:
        person.see(one)
        _require_division(person.state, max(one.received_at, person.last_tick))
    now = life[-1].received_at + later
    person.tick(now)
    _require_division(person.state, now)


def _require_division(hot: Hot, now: int) -> None:
    halves = {"active_30d", "inactive_30d"} & set(hot.segments)
    recent = hot.last_activity_at >= 0 and now - hot.last_activity_at < 30 * DAY
    active = recent and hot.activity != "uninstalled"
    assert halves == ({"active_30d"} if active else {"inactive_30d"})
    assert all(now - visit.last_at < 30 * DAY for visit in visits(hot.searched))


@LAW
@given(lives())
def test_due_is_the_first_moment_at_which_anything_changes(life: list[Accepted]) -> None:
    laws.due_is_when_something_changes(RULES, life, 20)


@LAW
@given(lives(), _one(T0 + 400 * DAY), st.integers(1, 400 * DAY))
def test_a_late_upload_moves_nothing_backwards(life: list[Accepted], late: Accepted, age: int) -> None:
    """A phone that was three days in a drawer sets back no instant, no count, no stage, and revives nobody."""
    person = Person(RULES).all(life)
    now = max(life[-1].received_at, T0 + 400 * DAY)
    person.tick(now)
    before = copy.copy(person.state)
    oldest = min(before.first_seen_at, before.last_activity_at if before.last_activity_at >= 0 else now)
    changes = person.see(msgspec.structs.replace(late, occurred_at=max(0, oldest - age), received_at=now))
    after = person.state
    for name in ("last_seen_at", "last_activity_at", "session_last_at", "sessions", "screens", "opens", "activities",
                 "active_days", "last_day"):  # fmt: skip
        assert getattr(after, name) >= getattr(before, name), name
    stages = [s.id for s in weather().stages]
    assert stages.index(after.stage) >= stages.index(before.stage)
    if before.last_activity_at >= 0:
        assert after.activity == before.activity
        assert after.sessions == before.sessions
        assert not [c for c in changes if c.kind == "activity_changed"]


@LAW
@given(lives())
def test_stages_are_entered_in_order_and_never_lost(life: list[Accepted]) -> None:
    person = Person(RULES).all(life)
    person.tick(life[-1].received_at + 200 * DAY)
    entered = [c.payload["to"] for c in person.changes if c.kind == "stage_changed"]
    assert entered == [s.id for s in weather().stages][: len(entered)]


SECOND = msgspec.structs.replace(
    with_days(new=3, at_risk=5, inactive=10, lapsed=40, reactivated=3),
    searched_days=7,
    segments=[Segment("explorers", "On the way", stage=["convert", "retain"])],
)
THIRD = with_days(new=7, at_risk=20, inactive=60, lapsed=120, reactivated=9)


@LAW
@given(lives(), st.lists(STEPS, min_size=2, max_size=2))
def test_rules_entered_in_turn_are_the_rules_ticked_at_each(life: list[Accepted], gaps: list[int]) -> None:
    """A user who slept through two rules versions goes through each at its moment, however late it is noticed."""
    end = life[-1].received_at
    s2 = end + gaps[0]
    s3 = s2 + gaps[1]
    versions = [(0, weather()), (s2, SECOND), (s3, THIRD)]
    hot = Person(in_force(versions[0])).all(life).state
    step, told, days = hot, [], []
    for count, (since, _) in enumerate(versions[1:], 2):
        # entering a version is time reaching the moment of it, and then the version
        step, reached, moved_then = tick(step, since, in_force(*versions[: count - 1]))
        step, entered, moved_there = tick(step, since, in_force(*versions[:count]))
        told += reached + entered
        days += moved_then + moved_there
    step, rest, moved = tick(step, s3 + 200 * DAY, in_force(*versions))
    lazily, at_once, all_moved = tick(hot, s3 + 200 * DAY, in_force(*versions))
    assert lazily == step
    assert at_once == told + rest
    assert all_moved == days + moved
    assert lazily.rules_version == 3


@LAW
@given(lives())
def test_the_cold_part_is_looked_at_only_where_it_was_said(life: list[Accepted]) -> None:
    laws.cold_is_looked_at_only_where_it_was_said(RULES, life)


@LAW
@given(lives())
def test_what_went_in_is_never_changed(life: list[Accepted]) -> None:
    """The cache hands out its own objects; after a failed commit the old ones must still be the old ones."""
    person = Person(RULES)
    for one in life:
        before = person.hot
        frozen = encode_hot(before) if before is not None else b""
        person.see(one)
        if before is not None:
            assert encode_hot(before) == frozen


@LAW
@given(lives())
def test_a_user_survives_being_stored(life: list[Accepted]) -> None:
    hot = Person(RULES).all(life).state
    assert decode_hot(encode_hot(hot)) == hot


@LAW
@given(lives(), st.data())
def test_whoever_is_read_again_goes_on_as_if_never_stored(life: list[Accepted], data: st.DataObject) -> None:
    """An owner forgets users and shards move: if the row held less than memory, a decision would depend on it."""
    stayed, moved = Person(RULES), Person(RULES)
    for one in life:
        stayed.see(one)
        moved.see(one)
        if data.draw(st.booleans()):
            moved.hot = decode_hot(encode_hot(moved.state))
    end = life[-1].received_at + 200 * DAY
    assert moved.tick(end) == stayed.tick(end)
    assert (moved.state, moved.changes, moved.spilled) == (stayed.state, stayed.changes, stayed.spilled)


@LAW
@given(lives())
def test_changes_made_by_time_lie_in_the_order_of_time(life: list[Accepted]) -> None:
    person = Person(RULES).all(life)
    changes: list[Change] = person.tick(life[-1].received_at + 200 * DAY)
    moments = [c.occurred_at for c in changes]
    assert moments == sorted(moments)
    assert {c.cause_type for c in changes} <= {"tick"}


def _settled(cities: int) -> Hot:
    """A loyal user with a full ring of message ids and this many searched and added cities."""
    person = Person(RULES)
    now = T0
    for day in range(70):
        now = T0 + day * DAY
        person.see(event("Application Opened", now, message_id=f"{day:032x}"))
    for n in range(cities):
        person.see(event("City Searched", now + n, city=12_000_000 + n, message_id=f"s{n:031x}"))
        person.see(event("City Added", now + n, city=13_000_000 + n, message_id=f"a{n:031x}"))
    everything = {"categories": {"location": True, "search_history": True, "push": True}}
    person.see(event("Default City Set", now, city=12_345_678, context=Context(None, "en", None, None, "newsletter")))
    person.see(event("Consent Preference Updated", now, properties=everything))
    hot = person.state
    full_since = 70 - dedup.SLOTS + 2 * cities + 2
    assert all(dedup.contains(hot.ring, message_hash(f"{day:032x}")) for day in range(full_since, 70))
    assert len(visits(hot.searched)) == len(visits(hot.added)) == cities
    return hot


def test_an_ordinary_user_fits_into_600_bytes() -> None:
    """Larger rows cost Postgres two to three times as much."""
    assert len(encode_hot(_settled(3))) <= 600


def test_a_full_user_fits_into_600_bytes() -> None:
    assert len(encode_hot(_settled(8))) <= 600


@pytest.mark.parametrize("most", [1, 3, 7])
def test_how_a_stream_is_cut_into_batches_makes_no_difference(most: int) -> None:
    """Between two batches a user may leave the cache and be read again."""
    life = [
        event(name, T0 + n * 9 * HOUR, city=NEW_YORK if "City" in name else None, message_id=f"x{n % 11}")
        for n, name in enumerate(["Application Opened", "City Added", "Screen Viewed", "City Searched"] * 10)
    ]
    whole = Person(RULES).all(life)
    cut = Person(RULES)
    for start in range(0, len(life), most):
        cut.all(life[start : start + most])
        cut.hot = decode_hot(encode_hot(cut.state))
    assert (cut.state, cut.changes) == (whole.state, whole.changes)
