"""What two users come to who turn out to be one."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.segmenter.domain import identity, merging, returns
from services.segmenter.domain.state import (
    ABSORBED,
    Cold,
    Daily,
    Hot,
    Shop,
    consenting,
    decode_cold,
    decode_hot,
    encode_cold,
    encode_hot,
    told_consents,
)
from services.segmenter.domain.visited import visits
from shared.contracts.events import Accepted, Context, Device
from tests.support.people import BOSTON, CHICAGO, DAY, HOUR, MINUTE, NEW_YORK, T0, Person, event, in_force, shop

LAW = settings(max_examples=60, deadline=None, database=None)
CITIES = (NEW_YORK, CHICAGO, BOSTON)


def test_the_table_says_something_of_every_field() -> None:
    """A field that nobody thought of would be lost with the user who is absorbed."""
    for table, kind in ((merging.HOT, Hot), (merging.SHOP, Shop), (merging.COLD, Cold)):
        assert set(table) == set(kind.__struct_fields__)
    for table in (merging.HOT, merging.SHOP, merging.COLD):
        named = {rule for rule in table.values() if isinstance(rule, str)} - {"SHOP"}
        assert not [name for name in named if not hasattr(merging, name.split(".")[0])]


def merge(known: Person, known_id: str, other: Person, other_id: str, at: int, cause: str = "m") -> None:
    """As the two shards do it: the other one is laid down and sent over, and folded in."""
    for person in (known, other):
        person.tick(max(at, person.last_tick))
    assert known.hot is not None and other.hot is not None
    sent = encode_hot(other.hot), encode_cold(other.cold or Cold())
    left = merging.leave(other_id, other.hot, other.cold or Cold(), known_id, at=at, cause=cause, rules=other.rules)
    other.hot, other.cold = left.hot, left.cold
    other.changes += left.changes
    count(other, left.daily)
    merged = merging.absorb(
        known_id, known.hot, known.cold or Cold(), other_id, decode_hot(sent[0]), decode_cold(sent[1]), at=at, as_of=at,
        cause=cause, rules=known.rules,
    )  # fmt: skip
    known.hot, known.cold = merged.hot, merged.cold
    known.changes += merged.changes
    count(known, merged.daily)


def count(person: Person, daily: list[Daily]) -> None:
    for day, kind, name, by in daily:
        person.daily[day, kind, name] += by


def life(seed: int, *, events: int = 30, begin: int = T0) -> list[Accepted]:
    chance, now = random.Random(seed), begin + seed % 7 * DAY
    found = []
    for number in range(events):
        now += chance.choice([MINUTE, 10 * MINUTE, HOUR, DAY, 3 * DAY])
        name = chance.choice(["Application Opened", "Screen Viewed", "City Searched", "City Added", "$identify"])
        city = chance.choice(CITIES) if name.startswith("City") else None
        found.append(event(name, now, city=city, message_id=f"{seed}-{number}"))
    return found


FACTS = (
    "first_seen_at", "last_seen_at", "first_activity_at", "last_activity_at", "screens", "opens", "activities",
    "last_day", "bitmap", "older_days", "months", "active_days", "stage", "activity", "activity_at", "consents",
)  # fmt: skip


@LAW
@given(st.integers(0, 9999), st.integers(0, 9999), st.integers(0, 9999), st.integers(0, 120))
def test_in_whatever_order_two_are_absorbed(one: int, two: int, known: int, later: int) -> None:
    """What was seen, done and reached, and what is counted of it, are those of the set of all three."""
    lives = {"a": life(one), "b": life(two + 10_000), "k": life(known + 20_000)}
    at = max(several[-1].received_at for several in lives.values()) + later * DAY
    ends = []
    for order in (("a", "b"), ("b", "a")):
        people = {name: Person().all(several) for name, several in lives.items()}
        for other in order:
            merge(people["k"], "k", people[other], other, at)
        total = sum((person.daily for person in people.values()), Counter[tuple[int, str, str]]())
        state = people["k"].state
        ends.append(
            (
                {name: getattr(state, name) for name in FACTS},
                {v.city_id: (v.count, v.last_at) for v in visits(state.added)},
                {key: n for key, n in total.items() if n and key[1] != "visit"},
                state.assignment_id,
            )
        )
    assert ends[0] == ends[1]
    days = {one.occurred_at // DAY for several in lives.values() for one in several if one.name != "$identify"}
    counted = {day: n for (day, kind, _), n in total.items() if kind == returns.ACTIVE and n}
    assert sum(n for (_, kind, _), n in total.items() if kind == "users") == 1
    assert {day for day in counted if max(days) - day < 64} == {day for day in days if max(days) - day < 64}


def test_whoever_is_laid_down_is_in_no_count() -> None:
    a, k = Person().all(life(1)), Person().all(life(2))
    merge(k, "k", a, "a", T0 + 200 * DAY)
    assert a.state.merged_into == "k" and a.state.due_at == -1
    assert {kind for (_, kind, _), n in a.daily.items() if n} <= {"visit", "active", "rate"}
    assert sum(n for (_, kind, _), n in a.daily.items() if kind == "rate") == 0
    kinds = [change.kind for change in a.changes if change.cause_type == "merge"]
    assert kinds[0] == "user_merged" and set(kinds[1:]) == {"segment_exited", "cohort_exited"}
    assert a.tick(T0 + 900 * DAY) == []


def test_signing_in_goes_on_with_the_visit() -> None:
    """The app was opened by somebody unknown, who then said who they are: one visit, and one day."""
    a = Person().all([event("Application Opened", T0), event("Screen Viewed", T0 + MINUTE)])
    k = Person().all([event("$identify", T0 + 2 * MINUTE), event("Screen Viewed", T0 + 3 * MINUTE)])
    merge(k, "k", a, "a", T0 + 3 * MINUTE)
    assert (k.state.sessions, k.state.session_start_at, k.state.session_screens) == (1, T0, 2)
    visit = a.daily + k.daily
    assert {key[2]: n for key, n in visit.items() if key[1] == "visit"} == {"sessions": 1, "screens": 2}


def test_visits_of_two_evenings_are_two() -> None:
    a = Person().all([event("Application Opened", T0)])
    k = Person().all([event("Application Opened", T0 + DAY)])
    merge(k, "k", a, "a", T0 + 2 * DAY)
    assert (k.state.sessions, k.state.session_start_at) == (2, T0 + DAY)


@pytest.mark.parametrize(
    ("own", "other", "activity"),
    [
        ([40], [], "new"),
        ([], [40], "new"),
        ([40], [0], "reactivated"),
        ([0], [40], "reactivated"),
        ([0, 40], [20], "active"),
        ([39], [38], "new"),
        ([0], [2], "inactive"),
    ],
)
def test_the_pulse_is_that_of_both_together(own: list[int], other: list[int], activity: str) -> None:
    """Whoever was away for a month under one id was not if they came under the other; judged a little later."""
    people = []
    for days in (own, other):
        person = Person().all([event("$identify", T0 + 40 * DAY)])
        if days:
            person = Person().all([event("Application Opened", T0 + day * DAY) for day in days])
        people.append(person)
    merge(people[0], "k", people[1], "a", T0 + 41 * DAY)
    assert people[0].state.activity == activity


def test_holdouts_stay_those_of_the_id_seen_first() -> None:
    """Else a merge would move people between the groups that are compared."""
    early, late = Person().all([event("Application Opened", T0)]), Person().all([event("Application Opened", T0 + DAY)])
    merge(late, "late", early, "early", T0 + DAY)
    assert late.state.assignment_id == "early"
    assert any(c.kind == "assignment_set" and c.payload == {"assignment_id": "early"} for c in late.changes)
    again = Person().all([event("Application Opened", T0 + HOUR)])
    merge(late, "late", again, "again", T0 + 2 * DAY)
    assert late.state.assignment_id == "early"


def test_an_order_both_told_of_is_one() -> None:
    rules = in_force((0, shop()))
    told = {"order_id": "o-1", "revenue": 10.0}
    a, k = (Person(rules).all([event("Order Completed", T0 + n, properties=told)]) for n in (0, DAY))
    a.see(event("Order Completed", T0 + 1, properties={"order_id": "o-2", "revenue": 5.0}))
    merge(k, "k", a, "a", T0 + 2 * DAY)
    assert (k.state.orders, k.state.order_days, k.state.revenue) == (2, 1, 1500)
    both = a.daily + k.daily
    assert {key: n for key, n in both.items() if key[1] == "total" and n} == {
        (T0 // DAY, "total", "orders"): 2, (T0 // DAY, "total", "revenue"): 1500,
    }  # fmt: skip


def test_what_either_withdrew_is_withdrawn() -> None:
    a, k = Person().all(life(3)), Person().all(life(4))
    assert a.hot is not None and k.hot is not None
    a.hot.consents = consenting(consenting(0, "location", False), "push", True)
    k.hot.consents = consenting(0, "location", True)
    merge(k, "k", a, "a", T0 + 100 * DAY)
    assert told_consents(k.state.consents) == {"location": False, "push": True}
    assert not k.state.searched and not k.state.added
    assert any(c.kind == "consent_set" and c.payload == {"location": False, "push": True} for c in k.changes)


def test_the_known_users_own_device_is_the_newest() -> None:
    def on(device: str, token: str, at: int) -> Accepted:
        return event("Application Opened", at, context=Context(Device(device, "ios", token), "en"))

    a, k = Person().all([on("d1", "t1", T0), on("d2", "t2", T0 + 1)]), Person().all([on("d1", "t1", T0 + 2)])
    merge(k, "k", a, "a", T0 + DAY)
    assert k.cold is not None
    assert [device.id for device in k.cold.devices] == ["d2", "d1"]
    told = [c.payload["device"]["id"] for c in k.changes if c.kind == "device_set" and c.cause_type == "merge"]  # type: ignore[index]
    assert told == ["d2", "d1"], "the feed's reader has them in the same order"


def test_claims_stay_with_who_made_them() -> None:
    cold: Any = identity.claim(Cold(), "k", "a")
    k, a = Person().all(life(5)), Person().all(life(6))
    k.cold = identity.settled(cold, "a", ABSORBED)
    merge(k, "k", a, "a", T0 + 100 * DAY)
    assert k.cold.claims and a.cold == Cold()


def test_the_page_on_merging_names_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs/merging.md").read_text()
    table = page.partition("| What | Becomes |")[2].partition("\n## ")[0]
    named = Counter(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines() if "|" in row)))
    fields = {*merging.HOT, *merging.SHOP, *merging.COLD}
    assert named.keys() == fields
    assert all(n == 1 for name, n in named.items() if name != "orders")
