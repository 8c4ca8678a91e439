"""Users who turn out to be one, over the whole road: every order of events gives a state that the oracle's table gives,
nothing is counted twice, and defects of the merge are found."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from services.segmenter.domain import dedup, identity, merging
from services.segmenter.domain.state import Hot, decode_hot
from services.segmenter.shard import Draft
from shared.contracts.events import Accepted
from tests.support import oracle
from tests.support.miniature import MERGES, Miniature
from tests.unit.test_oracle import START, Scene, differences, live, opened, rules

DAY = 86_400.0
SHARDS = 3


def world_of(patch: pytest.MonkeyPatch) -> Miniature:
    return Miniature({1: rules()}, patch, shards=SHARDS)


def identify(user: str, other: str, message_id: str, kind: str = "identify") -> dict[str, Any]:
    named = "anonymousId" if kind == "identify" else "previousId"
    return {"type": kind, "userId": user, named: other, "messageId": message_id}


def state(world: Miniature, user: str) -> Hot:
    (row,) = [row for (_, name), row in world.users.items() if name == user]
    return decode_hot(row[2])


def settle(scene: Scene, day: float) -> None:
    """Until everybody has heard of everything."""
    for _ in range(4):
        scene.time(day)


def users(world: Miniature) -> int:
    return sum(n for (_, kind, _), n in world.tallies.items() if kind == "users")


def activities(world: Miniature) -> int:
    return sum(decode_hot(row[2]).activities for row in world.users.values())


def refusals(world: Miniature) -> Counter[str]:
    return Counter(str(row.payload["reason"]) for row in world.ledger if row.kind == "merge_refused")


@pytest.mark.parametrize("kind", ["identify", "alias"])
def test_an_anonymous_user_becomes_part_of_a_known_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of(monkeypatch)
    scene = Scene(world)
    for number in range(3):
        scene.post(opened("anon", f"a{number}"), day=number)
    settle(scene, 3)
    scene.post(identify("kim", "anon", "i1", kind), day=4)
    settle(scene, 4.1)
    assert differences(world) == []
    assert (state(world, "anon").merged_into, state(world, "kim").opens, users(world)) == ("kim", 3, 1)
    merged = [(row.user_id, row.payload) for row in world.ledger if row.kind == "user_merged"]
    assert sorted(merged) == [(user, {"from": "anon", "to": "kim"}) for user in ("anon", "kim")]
    assert {row.cause_type for row in world.ledger if row.kind == "user_merged"} == {"merge"}


def test_late_events_follow_once_however_often_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """A phone that kept events uploads them under the id it had, twice; one of them had come before the merge."""
    world = world_of(monkeypatch)
    scene = Scene(world)
    scene.post(opened("anon", "a1"))
    scene.post(identify("kim", "anon", "i1"), day=1)
    settle(scene, 1.1)
    for _ in range(2):
        for message_id in ("a1", "a2", "a3"):
            scene.post(opened("anon", message_id), day=2)
    settle(scene, 2.1)
    assert differences(world) == []
    assert (state(world, "kim").opens, activities(world)) == (3, 3)


def test_an_id_that_was_never_seen_is_kept_for_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of(monkeypatch)
    scene = Scene(world)
    scene.post(identify("kim", "anon", "i1"))
    settle(scene, 0.1)
    assert (users(world), state(world, "anon").merged_into) == (1, "kim")
    assert not [row for row in world.ledger if row.kind == "user_merged"]
    scene.post(opened("anon", "a1"), day=1)
    settle(scene, 1.1)
    assert differences(world) == []
    assert (users(world), state(world, "kim").opens) == (1, 1)


def test_the_first_known_user_keeps_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tablet that two people sign in on."""
    world = world_of(monkeypatch)
    scene = Scene(world)
    scene.post(opened("tablet", "a1"))
    for day, user in ((1, "kim"), (2, "lee"), (3, "lee")):
        scene.post(identify(user, "tablet", f"i{day}"), day=day)
        settle(scene, day + 0.1)
    assert differences(world) == []
    assert state(world, "tablet").merged_into == "kim"
    assert refusals(world) == {"elsewhere": 1}, "asked for once, whatever is said how often"


def test_two_known_users_stay_two(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of(monkeypatch)
    scene = Scene(world)
    scene.post({"type": "identify", "userId": "kim", "messageId": "i0"})
    settle(scene, 0.1)
    scene.post(identify("lee", "kim", "i1", "alias"), day=1)
    settle(scene, 1.1)
    assert differences(world) == []
    assert refusals(world) == {"known": 1} and users(world) == 2
    assert not state(world, "kim").merged_into and not state(world, "lee").merged_into


@pytest.mark.parametrize("first", ["the near link", "the far link"])
def test_a_chain_never_grows_beyond_one_link(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """a → b → c: b, having taken a in, is known and stays; b, being part of c, hands on whom it is said to be."""
    world = world_of(monkeypatch)
    scene = Scene(world)
    for user in "ab":
        scene.post(opened(user, f"{user}1"))
    links = [identify("b", "a", "i1"), identify("c", "b", "i2")]
    for day, link in enumerate(links if first == "the near link" else links[::-1], 1):
        scene.post(link, day=day)
        settle(scene, day + 0.1)
    assert differences(world) == []
    assert activities(world) == 2
    if first == "the near link":
        assert state(world, "a").merged_into == "b" and refusals(world) == {"known": 1}
    else:
        assert state(world, "a").merged_into == state(world, "b").merged_into == "c"
    assert not any(state(world, state(world, user).merged_into or "c").merged_into for user in "ab")


@pytest.mark.parametrize("together", [True, False])
def test_crossed_aliases_make_no_circle(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other the first counts; at the same moment each is known by the time the other asks."""
    world = world_of(monkeypatch)
    scene = Scene(world)
    for user in "ab":
        scene.post(opened(user, f"{user}1"))
    settle(scene, 0.1)
    for day, (user, other) in enumerate((("a", "b"), ("b", "a")), 1):
        scene.post(identify(user, other, f"i{day}", "alias"), day=day)
        if not together:
            settle(scene, day + 0.1)
    settle(scene, 3)
    assert differences(world) == []
    assert activities(world) == 2
    if together:
        assert users(world) == 2 and refusals(world) == {"known": 2}
    else:
        assert users(world) == 1 and state(world, "b").merged_into == "a" and not refusals(world)


@pytest.mark.parametrize("seed", range(6))
def test_nobody_is_lost_or_counted_twice(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random lives under many ids, with repeats; batches, sweeps, owners and what shards tell each other fall
    differently each time; what was told may come a second time."""
    world = world_of(monkeypatch)
    world.told_most = 1 + seed % 3
    again = random.Random(seed)
    append = Miniature._append

    def twice(self: Miniature, topic: str, *record: Any) -> None:
        append(self, topic, *record)
        if topic == MERGES and again.random() < 0.2:
            for earlier in self.topics[topic][record[0]][-again.randint(1, 3) :]:
                append(self, topic, record[0], earlier.key, earlier.value or b"", earlier.timestamp)

    monkeypatch.setattr(Miniature, "_append", twice)
    live(world, 100 + seed, days=80, events=500)
    verdict = oracle.judge(world.snapshot())
    assert verdict.differences == []
    assert verdict.counts["merged"] > 3 and verdict.counts["forwarded"] > 5
    assert verdict.counts["users"] == users(world)


def test_a_laid_down_user_meets_new_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk that brings everybody to new rules passes over them."""
    world = Miniature({1: rules(), 2: rules()}, monkeypatch, shards=SHARDS)
    scene = Scene(world)
    scene.post(opened("anon", "a1"))
    scene.post(identify("kim", "anon", "i1"), day=1)
    settle(scene, 1.1)
    scene.time(2, version=2)
    scene.time(40, version=2)
    scene.post(opened("anon", "a2"), day=41, version=2)
    scene.time(41.1, version=2)
    scene.time(41.2, version=2)
    assert differences(world) == []
    assert state(world, "kim").opens == 2


@pytest.mark.parametrize("asked", ["kim", "anon"])
def test_whoever_is_erased_is_erased_under_every_id(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whichever id it is asked for; what still comes under any of them stays out, and nobody takes one over."""
    world = world_of(monkeypatch)
    scene = Scene(world)
    for user in ("anon", "other"):
        scene.post(opened(user, f"{user}1"))
    for day, user in enumerate(("anon", "other"), 1):
        scene.post(identify("kim", user, f"i{day}"), day=day)
        settle(scene, day + 0.1)
    world.clock.now = int((START + 3 * DAY) * 1000)
    world.decide(world.ask("erase", asked, world.clock.now), 1)
    settle(scene, 3.1)
    world.overwrite()
    assert differences(world) == []
    assert (users(world), world.users) == (0, {})
    for number, user in enumerate(("anon", "other", "kim")):
        scene.post(opened(user, f"late{number}"), day=4)
    scene.post(identify("lee", "anon", "i9"), day=4)
    settle(scene, 4.1)
    assert differences(world) == []
    assert users(world) == 1 and {user for _, user in world.users} == {"lee"}
    assert not [row for row in world.users.values() if b"anon" in (row[3] or b"")]


def test_an_erasure_overtakes_no_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for in the moment between question and answer: the past that is on its way comes to nobody."""
    world = world_of(monkeypatch)
    scene = Scene(world)
    scene.post(opened("anon", "a1"))
    settle(scene, 0.1)
    scene.post(identify("kim", "anon", "i1"), day=1)
    world.decide(world.ask("erase", "kim", world.clock.now), 1)
    settle(scene, 1.1)
    settle(scene, 1.2)
    world.overwrite()
    assert differences(world) == []
    assert (users(world), world.users) == (0, {})


def one_merge(world: Miniature) -> None:
    scene = Scene(world)
    for number in range(3):
        scene.post(opened("anon", f"a{number}"), day=number)
    scene.post({**opened("anon", "c"), "event": "City Added", "properties": {"city": "Dallas, TX"}}, day=2)
    scene.post(opened("kim", "k"), day=3)
    settle(scene, 3.1)
    scene.post(identify("kim", "anon", "i1"), day=4)
    settle(scene, 4.1)
    for _ in range(2):
        scene.post(opened("anon", "late"), day=5)
    settle(scene, 5.1)


@pytest.mark.parametrize(
    "defect", ["not laid down", "still counted", "screens lost", "passed on twice", "folded twice", "kept the cohort"]
)
def test_a_defect_of_a_merge_is_found(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of(monkeypatch)
    one_merge(world)
    assert differences(world) == []
    lay_down = Draft.laid_down
    match defect:
        case "not laid down":
            leave = merging.leave
            monkeypatch.setattr(
                merging, "leave", lambda u, hot, cold, to, **how: leave(u, hot, cold, to, **how)._replace(hot=hot)
            )
        case "still counted":
            monkeypatch.setattr(
                Draft, "laid_down", lambda s, u, e, last, changes, daily: lay_down(s, u, e, last, changes, [])
            )
        case "screens lost":
            monkeypatch.setattr(merging, "HOT", {**merging.HOT, "opens": merging.later})
        case "passed on twice":

            def always(hot: Hot, one: Accepted, _: Any) -> tuple[Hot, None]:
                return msgspec.structs.replace(hot, ring=dedup.add(hot.ring, len(one.message_id), 0)[0]), None

            monkeypatch.setattr(identity, "passed_on", always)
            monkeypatch.setattr(dedup, "contains", lambda *_: False)
        case "folded twice":
            absorb = merging.absorb

            def twice(user_id: str, hot: Hot, cold: Any, other_id: str, other: Hot, *rest: Any, **how: Any) -> Any:
                first = absorb(user_id, hot, cold, other_id, other, *rest, **how)
                return absorb(user_id, first.hot, first.cold, other_id, other, *rest, **how)

            monkeypatch.setattr(merging, "absorb", twice)
        case "kept the cohort":

            def stay(s: Draft, u: str, e: Any, last: Hot, changes: list[Any], daily: list[Any]) -> None:
                lay_down(s, u, e, last, [c for c in changes if c.kind != "cohort_exited"], daily)

            monkeypatch.setattr(Draft, "laid_down", stay)
    broken = world_of(monkeypatch)
    one_merge(broken)
    assert differences(broken)
