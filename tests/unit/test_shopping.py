"""Do the simulated phones of a shop post what its pack takes, order nothing, and the same each time?"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any, cast

import msgspec
import pytest

from services.demo import cdnow, habits, phones, shopping
from services.demo.drive import Phones
from services.demo.habits import Post
from services.demo.phones import Person
from services.demo.run import is_shop
from services.ingest.domain.intake import Intake, RawRecord, Taken
from services.local.up import Options
from shared.contracts.identifiers import shard_of
from shared.gazetteer import load
from shared.process.clock import parse_instant
from tests.support.people import DAY, HOUR, T0, shop

NOON = T0 + 12 * HOUR
COUNT = 300


@pytest.fixture(scope="module")
def everyone() -> list[Person]:
    return phones.people(7, COUNT, load())


def posts(everyone: list[Person], now: int = NOON) -> list[Post]:
    found = [post for p in everyone if (post := shopping.history(p, now)) is not None]
    found += [post for p in everyone if (post := shopping.arrival(p, 0, now)) is not None]
    visits = islice(shopping.visits(7, 0, everyone), 500)
    return found + [visit.post(0, now, visit.events) for visit in visits]


def test_the_shop_takes_everything_and_nothing_is_an_order(everyone: list[Person]) -> None:
    intake, names, ids = Intake(shop(), load(), 32), set(), []
    for post in posts(everyone):
        for event in post.body["batch"]:
            user = event["userId"]
            headers = {"mode": b"import" if post.path == "/v1/import" else b"live", "sent_at": str(NOON).encode()}
            raw = RawRecord(shard_of(user, 32), 0, user.encode(), msgspec.json.encode(event), headers, NOON)
            verdict = intake.judge(raw)
            assert isinstance(verdict, Taken), (event, verdict)
            names.add(verdict.name)
            ids.append(verdict.message_id)
    assert {"Product Viewed", "Guide Viewed", "Product Added to Wishlist", "Application Opened"} <= names
    assert not [name for name in names if "Order" in name or "City" in name]
    assert len(ids) == len(set(ids))


def test_the_same_seed_makes_the_same_posts(everyone: list[Person]) -> None:
    assert posts(everyone) == posts(phones.people(7, COUNT, load()))
    budget = [v.post(0, NOON, most) for v, most in habits.budgeted(shopping.visits(7, 0, everyone), 700)]
    assert sum(post.events * post.copies for post in budget) == 700


def test_no_age_of_an_order_lies_near_a_whole_day() -> None:
    """Spans are whole days: else the hour at which the demo is run would decide who is at risk."""
    for now in (NOON, NOON + 5 * HOUR + 1234):
        ages = [now - parse_instant(event["timestamp"]) for post in cdnow.history(now) for event in post.body["batch"]]
        assert {age % DAY for age in ages} == {DAY // 2}
        assert min(ages) == DAY // 2
        assert len(ages) == 6919


def test_no_earlier_visit_lies_where_someone_begins_to_be_at_risk(everyone: list[Person]) -> None:
    assert shop().activity.at_risk == shopping.AT_RISK_DAYS
    midnight = NOON - NOON % DAY
    for person in everyone:
        post = shopping.history(person, NOON)
        for event in post.body["batch"] if post is not None else []:
            assert (midnight - parse_instant(event["timestamp"])) // DAY + 1 != shopping.AT_RISK_DAYS


class Door:
    """A gateway that takes everything."""

    def __init__(self) -> None:
        self.posts: list[Post] = []

    async def post(self, post: Post) -> None:
        await asyncio.sleep(0)
        self.posts.append(post)


class Clock:
    def now_ms(self) -> int:
        return NOON


@pytest.mark.parametrize("is_one", [True, False])
def test_the_phones_of_a_shop_are_others(everyone: list[Person], is_one: bool) -> None:
    door = Door()
    users = Phones(cast(Any, door), cast(Any, Clock()), everyone, 7, 0, shop=is_one)

    async def all_of_it() -> None:
        await users.set_up(with_history=True)
        if is_one:
            await users.remember()
        await users.use(100_000, 200)

    asyncio.run(all_of_it())
    events = [event["event"] for post in door.posts for event in post.body["batch"] if event["type"] == "track"]
    assert events.count("Order Completed") == (6919 if is_one else 0)
    assert ("Product Viewed" in events, "Default City Set" in events) == (is_one, not is_one)


def test_whether_a_pack_is_a_shop() -> None:
    assert is_shop(Options(packs=("commerce",))) and is_shop(Options(packs=("commerce_stages",)))
    assert not is_shop(Options(packs=("weather",))) and not is_shop(Options(packs=("nonsense",)))
