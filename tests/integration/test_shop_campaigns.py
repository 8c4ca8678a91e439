"""Whom each campaign of the shipped shop reaches, from the events of customers to the push, through both services."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import msgspec
import pytest

from shared.contracts.events import Accepted, Context, Device, TimeRecord
from shared.contracts.rules import Rules
from tests.integration.test_limits import _at
from tests.support.people import event, shop
from tests.support.spine import Phones, Site, until, users_of

MINUTE, HOURS, DAYS = 60_000, 60, 1440
RULES = 2
OPEN = """
SELECT FROM notifier.message WHERE state IN ('intent', 'attempted') OR (state = 'waiting' AND release_at <= $1) LIMIT 1
"""


class Told(NamedTuple):
    """An event so many minutes before noon."""

    name: str
    ago: float
    properties: dict[str, Any]


def opened(ago: float) -> Told:
    return Told("Application Opened", ago, {})


def order(ago: float, number: str = "a", **told: Any) -> Told:
    return Told("Order Completed", ago, {"order_id": number, "revenue": 20.0, "channel": "online", **told})


def viewed(ago: float, **told: Any) -> Told:
    return Told("Product Viewed", ago, {"product_id": "p", **told})


GUIDE, WISH = (
    Told("Guide Viewed", 1 * DAYS + 5, {}),
    Told("Product Added to Wishlist", 2 * DAYS + 5, {"category": "jazz"}),
)
UNHAPPY = Told("Feedback Given", 3 * DAYS, {"score": 2})
ROCK = order(4 * DAYS + 5, category="rock")
REGULAR = [order(20 * DAYS, "a"), order(2 * DAYS + 5, "b")]
LIVES: dict[str, tuple[list[Told], dict[str, str]]] = {
    "new": ([opened(1)], {"free_shipping": "sent"}),
    "buys": ([opened(3 * DAYS), order(1)], {"first_order": "sent", "feedback_request": "waiting"}),
    "comes back": ([opened(40 * DAYS), opened(1)], {"thank_you": "sent"}),
    "reads": ([GUIDE], {"guide_to_purchase": "sent"}),
    "reads and buys": ([opened(3 * DAYS), GUIDE, order(3 * HOURS)], {"guide_to_purchase": "called_off", "first_order": "sent"}),
    "cannot decide": ([opened(3 * DAYS), *map(viewed, (250, 249, 248))], {"undecided": "sent"}),
    "decides": (
        [opened(3 * DAYS), *map(viewed, (250, 249, 248)), order(100)], {"undecided": "called_off", "first_order": "sent"},
    ),
    "wishes": ([WISH], {"abandoned_wishlist": "sent"}),
    "wishes and buys": ([WISH, order(1 * DAYS + 5)], {"abandoned_wishlist": "called_off"}),
    "ordered rock": ([ROCK], {"cross_sell": "sent", "feedback_request": "waiting"}),
    "looks at rock anyway": ([ROCK, viewed(60, category="rock")], {"cross_sell": "called_off"}),
    "looks at jazz": ([ROCK, viewed(60, category="jazz")], {"cross_sell": "sent"}),
    "ordered something": ([order(4 * DAYS + 5)], {"cross_sell": ""}),
    "a week later": ([order(7 * DAYS + 5)], {"feedback_request": "sent", "review_ask": "waiting"}),
    "sent it back": (
        [order(7 * DAYS + 5), Told("Order Cancelled", 6 * DAYS, {"order_id": "a"})], {"feedback_request": "called_off"},
    ),
    "ten days later": ([order(10 * DAYS + 5)], {"review_ask": "sent", "feedback_request": "stale"}),
    "is unhappy": ([order(10 * DAYS + 5), UNHAPPY], {"review_ask": "not_in_audience"}),
    "ordered once": ([order(14 * DAYS + 5)], {"second_order_ask": "sent", "review_ask": "stale"}),
    "is a regular": (REGULAR, {"referral_ask": "sent", "second_order": "stale"}),
    "is an unhappy regular": ([*REGULAR, UNHAPPY], {"referral_ask": "not_in_audience"}),
    "is loyal": ([order(ago * DAYS, f"o{ago}") for ago in (20, 18, 16, 0)], {"loyal": "sent"}),
    "is silent": ([opened(21 * DAYS + 5)], {"at_risk": "sent"}),
    "is silent for a month": ([opened(30 * DAYS + 5)], {"win_back": "sent"}),
    "is silent for half a year": ([opened(180 * DAYS + 5)], {"lapsed": "sent"}),
}  # fmt: skip


def _without_holdouts(rules: Rules) -> Rules:
    campaigns = [msgspec.structs.replace(c, holdout_percent=0.0) for c in rules.campaigns]
    return msgspec.structs.replace(rules, campaigns=campaigns)


@pytest.fixture
def noon() -> int:
    return _at(12)


async def test_each_campaign_reaches_whom_it_is_for(site: Site, noon: int) -> None:
    """And nobody whom an order, a refund or an opinion takes out of it; what came too late is stale, never sent."""
    site.move_time(noon)
    await asyncio.sleep(0.15)
    await site.install(_without_holdouts(shop()))
    users = dict(zip(LIVES, users_of(0, len(LIVES)), strict=True))
    decided: list[Accepted] = []
    for what, (life, _) in LIVES.items():
        phone = Context(Device(f"d-{what}", "ios", what), "en-US", "America/New_York")
        for one in sorted(life, key=lambda told: -told.ago):
            src, at = len(decided), noon - round(one.ago * MINUTE)
            decided.append(
                event(one.name, at, received=noon, user=users[what], properties=one.properties, context=phone, src=src,
                      prev=src - 1, rules=RULES)
            )  # fmt: skip
    async with site.segmenter(), site.notifier(Phones()) as running:
        await site.decide(*decided, TimeRecord(len(decided) - 1, b"", RULES, noon), shard=0)
        await site.applied(0, len(decided) - 1)

        last = (await site.ledger(0))[-1]["seq"]
        await site.applied(0, last, "notifier")

        async def judged() -> bool:
            running.check()
            return not await site.rows(OPEN, noon)

        await until(judged)
    rows = await site.rows("SELECT user_id, campaign, state, reason FROM notifier.message")
    for what, (_, expected) in LIVES.items():
        found = {r["campaign"]: r["reason"] or r["state"] for r in rows if r["user_id"] == users[what]}
        assert {name: found.get(name, "") for name in expected} == expected, (what, found)
        assert {n for n, state in found.items() if state == "sent"} == {
            n for n, state in expected.items() if state == "sent"
        }, (what, found)
    sent = {row["campaign"] for row in rows if row["state"] == "sent"}
    assert sent == {c.id for c in shop().campaigns} - {"second_order"}
