"""The oracle finds nothing where nothing is wrong, and each of five defects planted in the product's own code."""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.packs import load_pack
from services.segmenter import loading, pipeline
from services.segmenter.domain import dedup
from services.segmenter.domain.state import Change, Daily
from services.segmenter.shard import Draft
from services.segmenter.sweeper import Sweeper
from shared.contracts.rules import Campaign, EventTrigger, Rules, Segment, Template, Viewed
from shared.data import shard_owner
from shared.data.shard_owner import Owner
from shared.process.errors import Fenced
from tests.support import oracle
from tests.support.miniature import Miniature
from tests.support.shop_traffic import ShopTraffic
from tests.support.traffic import DAY, Traffic

START = 1_760_000_000.0
HOUR = 3600.0


def rules(**intake: int) -> Rules:
    pack = load_pack("weather")
    found = msgspec.structs.replace(pack, campaigns=[], intake=msgspec.structs.replace(pack.intake, **intake))
    assert isinstance(found, Rules)
    return found


def differences(world: Miniature) -> list[str]:
    return oracle.judge(world.snapshot()).differences


def live(
    world: Miniature,
    seed: int,
    days: float,
    versions: Iterable[int] = (1,),
    events: int = 300,
    kind: type[Traffic] = Traffic,
    erasing: float = 0,
) -> None:
    """Users come and go for `days`, the sweep comes by now and then, the owner changes, rules change."""
    chance, order = random.Random(seed), list(versions)
    traffic = kind(seed, users=12)
    owner, now = world.owner(), START
    for number in range(events):
        now += chance.expovariate(events / (days * DAY))
        world.clock.now = int(now * 1000)
        version = order[min(len(order) - 1, number * len(order) // events)]
        shard = world.post(traffic.event(now), world.clock.now)
        if erasing and chance.random() < erasing:
            user = f"u{seed}-{chance.randrange(12)}"
            world.ask("erase" if chance.random() < 0.6 else "readmit", user, world.clock.now)
        if chance.random() < 0.5:
            world.decide(shard, version)
        if chance.random() < 0.2:
            world.decide(shard, version)
            world.tell_time(shard, world.clock.now, version)
        if chance.random() < 0.3:
            owner.work(most=chance.choice([1, 3, 1000]))
        if chance.random() < 0.03:
            owner = world.owner()
    for shard in range(world.shards):
        world.decide(shard, order[-1])
        world.tell_time(shard, world.clock.now, order[-1])
    for _ in range(4 * events):
        before = world.reached()
        owner.work()
        if before == world.reached():
            break


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_found_where_nothing_is_wrong(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches, sweeps, new owners and lazy ticks fall differently each time; the refold knows none of them."""
    world = Miniature({1: rules()}, monkeypatch)
    live(world, seed, days=70)
    assert differences(world) == []
    assert len(world.ledger) > 300 and len(world.ticks) > 5


@pytest.mark.parametrize("seed", range(4))
def test_erased_users_are_refolded(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Erased in mid-life, once or several times, taken in again or not."""
    world = Miniature({1: rules()}, monkeypatch)
    live(world, seed, days=70, erasing=0.08)
    rows = {row.kind for row in world.ledger}
    assert {"user_erased", "segment_exited", "cohort_exited"} <= rows
    assert any(world.suppressed.values())
    world.overwrite()
    assert differences(world) == []
    erased = [row for row in world.ledger if row.kind == "user_erased"]
    assert len(erased) > 3 and all(row.user_id.startswith("erased-") for row in erased)


def test_erased_users_of_a_shop_leave_their_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was bought was bought; who bought it counts no longer, from that day on."""
    world = Miniature({1: rules(), 2: shop_rules()}, monkeypatch)
    live(world, 1, days=60, versions=(1, 2, 2), events=500, kind=ShopTraffic, erasing=0.05)
    world.overwrite()
    assert differences(world) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_change_of_rules_in_mid_stream_is_refolded(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user nobody touched passes through each version in turn, at the moment the shard did."""
    shorter = rules()
    shorter = msgspec.structs.replace(
        shorter, activity=msgspec.structs.replace(shorter.activity, at_risk=5, inactive=9), stages=shorter.stages[:3]
    )
    world = Miniature({1: rules(), 2: shorter, 3: rules()}, monkeypatch)
    live(world, seed, days=50, versions=(1, 2, 3))
    assert differences(world) == []
    assert {t[5] for t in world.ticks} == {1, 2, 3}


def shop_rules(**changed: Any) -> Rules:
    return msgspec.structs.replace(load_pack("commerce"), campaigns=[], **changed)


@pytest.mark.parametrize("seed", range(4))
def test_a_shop_is_refolded(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weather app becomes a shop: what an event needs loaded depends on rules that come with the same batch."""
    other = shop_rules(
        currency="EUR",
        segments=[
            Segment("undecided", "Cannot decide", viewed=Viewed(2, 3), not_ordered_days=2),
            Segment("spenders", "Spend", least={"revenue": 5000}, ordered_days=9),
        ],
    )
    world = Miniature({1: rules(), 2: shop_rules(), 3: other}, monkeypatch)
    live(world, seed, days=60, versions=(1, 2, 2, 3), events=500, kind=ShopTraffic)
    assert differences(world) == []
    assert sum(n for (_, kind, name), n in world.tallies.items() if (kind, name) == ("total", "orders")) > 10
    assert any(row.kind == "segment_exited" and row.cause_type == "tick" for row in world.ledger)


def waiting_rules(hours: int) -> Rules:
    """A shop in which campaigns wait for events, and to hear nothing more."""
    texts = {"en": Template("Hi", "{{ event.currency }}")}
    wish = EventTrigger(["Product Added to Wishlist"], {}, hours * 60, ["Order Completed"])
    kept = EventTrigger(["Order Completed"], {"channel": ["online"]}, hours * 60, ["Order Refunded"], ["order_id"])
    campaigns = [Campaign("wish", "W", wish, texts), Campaign("kept", "K", kept, texts, freshness_seconds=60)]
    return msgspec.structs.replace(load_pack("commerce"), campaigns=campaigns)


def without_messages(world: Miniature) -> list[str]:
    """There is no notifier to make any."""
    return [one for one in differences(world) if not one.startswith("message ")]


@pytest.mark.parametrize("seed", range(2))
def test_moments_are_refolded(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the rules in force at each event: campaigns come, wait longer, and go."""
    world = Miniature({1: shop_rules(), 2: waiting_rules(1), 3: waiting_rules(99), 4: shop_rules()}, monkeypatch)
    live(world, seed, days=40, versions=(1, 2, 3, 4), events=400, kind=ShopTraffic)
    assert without_messages(world) == []
    assert sum(row.kind == "moment" for row in world.ledger) > 30


@pytest.mark.parametrize("kind", ["users", "rate", "total", "visit", "active", "month"])
def test_a_count_of_a_day_that_did_not_move_is_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    user = Draft.user

    def wrong(
        self: Draft, user_id: str, entry: Any, before: Any, changes: list[Change], daily: list[Daily], src: int
    ) -> None:
        user(self, user_id, entry, before, changes, [one for one in daily if one[1] != kind or src % 7], src)

    monkeypatch.setattr(Draft, "user", wrong)
    world = Miniature({1: shop_rules()}, monkeypatch)
    live(world, 1, days=10, events=200, kind=ShopTraffic)
    found = without_messages(world)
    assert found and all(f"the count {kind} " in one for one in found), found


@pytest.mark.parametrize("defect", ["first", "twice", "without its properties"])
def test_a_moment_told_wrongly_is_found(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    user = Draft.user

    def wrong(self: Draft, user_id: str, entry: Any, before: Any, changes: list[Change], *rest: Any) -> None:
        told = [change for change in changes if change.kind == "moment"]
        others = [change for change in changes if change.kind != "moment"]
        if defect == "without its properties":
            told = [msgspec.structs.replace(one, payload=one.payload | {"properties": {}}) for one in told]
        order = [*told, *others] if defect == "first" else [*others, *told]
        user(self, user_id, entry, before, order + told if defect == "twice" else order, *rest)

    monkeypatch.setattr(Draft, "user", wrong)
    world = Miniature({1: waiting_rules(1)}, monkeypatch)
    live(world, 1, days=10, events=100, kind=ShopTraffic)
    found = without_messages(world)
    assert any("ledger row" in one and "moment" in one for one in found), found


def test_orders_folded_without_those_before_them_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner forgot to load the cold part: every order looks like the first."""
    monkeypatch.setattr(loading, "needs_cold", lambda *_: False)
    world = Miniature({1: shop_rules()}, monkeypatch)
    for number in range(3):
        scene = Scene(world)
        scene.owner = world.owner()
        told = {"order_id": "a", "revenue": 5.0}
        scene.post({**opened("anna", f"m{number}"), "event": "Order Completed", "properties": told}, day=number)
        scene.time(number + 0.1)
    assert any("orders is 3, should be 1" in found for found in differences(world))


def opened(user: str, message_id: str) -> dict[str, Any]:
    return {"type": "track", "event": "Application Opened", "userId": user, "messageId": message_id}


class Scene:
    """A few users, an owner, and time that the test moves."""

    def __init__(self, world: Miniature) -> None:
        self.world, self.owner = world, world.owner()

    def post(self, event: dict[str, Any], day: float = 0.0, version: int = 1) -> int:
        self.world.clock.now = int((START + day * DAY) * 1000)
        shard = self.world.post(event, self.world.clock.now)
        self.world.decide(shard, version)
        return shard

    def time(self, day: float, version: int = 1) -> None:
        self.world.clock.now = int((START + day * DAY) * 1000)
        for shard in range(self.world.shards):
            self.world.tell_time(shard, self.world.clock.now, version)
        self.owner.work()
        self.owner.work()


def repeated_posts(world: Miniature) -> None:
    scene = Scene(world)
    for message_id in ("m1", "m1", "m2"):
        scene.post(opened("anna", message_id))
    scene.time(1)


def test_dedup_switched_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Miniature({1: rules()}, monkeypatch)
    repeated_posts(world)
    assert differences(world) == []
    broken = Miniature({1: rules()}, monkeypatch)
    monkeypatch.setattr(dedup, "contains", lambda ring, number: False)
    repeated_posts(broken)
    assert any("opens is 3, should be 2" in found for found in differences(broken))


def falling_silent(world: Miniature) -> None:
    scene = Scene(world)
    for user in ("anna", "bert", "cleo", "dora"):
        scene.post(opened(user, f"{user}-1"))
    scene.time(8)
    scene.time(15)
    scene.time(31)


@pytest.mark.parametrize("defect", ["not noted", "not applied", "one user passed over"])
def test_a_skipped_tick_is_found(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether time passed without a word of it, or was written down and passed nobody by."""
    world = Miniature({1: rules()}, monkeypatch)
    falling_silent(world)
    assert differences(world) == []
    broken = Miniature({1: rules()}, monkeypatch)
    bring, note = Sweeper._bring, Draft.tick

    def pass_over(self: Sweeper, draft: Draft, user_id: str, *rest: Any) -> None:
        if user_id != "bert":
            bring(self, draft, user_id, *rest)

    def forget(self: Draft, at_src: int, as_of: int) -> None:
        note(self, at_src, as_of)
        if len(broken.ticks) > 3:
            self.ticks.clear()

    if defect == "not noted":
        monkeypatch.setattr(Draft, "tick", forget)
    elif defect == "not applied":
        monkeypatch.setattr(Sweeper, "_bring", lambda *_: None)
    else:
        monkeypatch.setattr(Sweeper, "_bring", pass_over)
    falling_silent(broken)
    found = differences(broken)
    assert any("activity is" in one or "has not been brought" in one for one in found), found


def test_a_relay_that_swaps_rows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscriber that keeps the greatest number drops the row that comes too late."""
    world = Miniature({1: rules()}, monkeypatch)
    falling_silent(world)
    assert differences(world) == []
    publish = Miniature.publish
    broken = Miniature({1: rules()}, monkeypatch)
    monkeypatch.setattr(Miniature, "publish", lambda self, shard, rows: publish(self, shard, reversed(list(rows))))
    falling_silent(broken)
    found = differences(broken)
    assert found and all("a subscriber applies" in one for one in found), found


def two_deciders(world: Miniature) -> None:
    """The first decision refuses a late event; a second ingest, one rules version on, decides it again."""
    scene = Scene(world)
    late = {**opened("anna", "m2"), "timestamp": "2025-10-01T00:00:00Z"}
    shard = scene.post(opened("anna", "m1"), day=0)
    scene.post(late, day=0.1)
    world.decide(shard, version=2, since=0)
    scene.time(0.2, version=2)


def test_a_second_decision_that_is_applied_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {1: rules(too_old_days=1), 2: rules()}
    world = Miniature(versions, monkeypatch)
    two_deciders(world)
    assert differences(world) == []
    assert oracle.judge(world.snapshot()).counts["decided_otherwise"] == 1
    broken = Miniature(versions, monkeypatch)
    monkeypatch.setattr(pipeline, "judge", lambda last, prev, number: "apply")
    two_deciders(broken)
    assert any("opens is 2, should be 1" in found for found in differences(broken))


class LateWrite:
    """A former owner wakes up and applies, from its memory, what the new owner has applied already."""

    def __init__(self, world: Miniature) -> None:
        self.scene = Scene(world)
        self.scene.post(opened("anna", "m1"))
        self.scene.time(1)
        self.zombie, self.scene.owner = self.scene.owner, world.owner()
        self.scene.post({**opened("anna", "m2"), "event": "City Added", "properties": {"city": "Dallas, TX"}}, day=2)
        self.scene.time(2)


def test_a_late_write_of_a_former_owner_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Miniature({1: rules()}, monkeypatch)
    late = LateWrite(world)
    with pytest.raises(Fenced):
        late.zombie.work()
    assert differences(world) == []
    broken = Miniature({1: rules()}, monkeypatch)
    late = LateWrite(broken)

    async def unfenced(_: Any, __: str, epochs: dict[int, int]) -> dict[int, Owner]:
        return {shard: copy.copy(late.zombie.reader.shards[shard].owner) for shard in epochs}

    monkeypatch.setattr(shard_owner, "lock", unfenced)
    late.zombie.work()
    found = differences(broken)
    assert any("numbers doubled [6" in one for one in found), found
    assert any("tally ('cohort'" in one for one in found), found


def test_the_oracle_imports_nothing_from_the_services() -> None:
    """Else it might repeat their mistakes."""
    support = Path(oracle.__file__).parent
    for path in support.glob("oracle*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] == "services" for name in names), f"{path.name}: {names}"
