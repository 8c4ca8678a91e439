"""What a simulated phone posts in a shop: people who look around, and order nothing.

Pure: the present is an argument. Those who buy come from a real shop's history (see `cdnow`).
"""

from __future__ import annotations

import random  # noqa: TID251  seeded: the same seed makes the same visits
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from services.demo import habits
from services.demo.habits import DAY_MS, VERSION, Pen, Post, Visit
from services.demo.phones import Person

CATEGORIES = ("rock", "jazz", "classical", "folk")
AT_RISK_DAYS = 21
WISHES_PERCENT = 8
READS_PERCENT = 20


def history(person: Person, now_ms: int) -> Post | None:
    """Earlier visits, for `/v1/import`; None where there were none. No day lies where `at_risk` begins."""
    midnight = now_ms - now_ms % DAY_MS
    days = sorted({day - (day == AT_RISK_DAYS) for day in person.days}, reverse=True)
    starts = [midnight - day * DAY_MS + DAY_MS // 2 for day in days]
    if person.hours:
        starts = [now_ms - person.hours * 3_600_000]
    if not starts:
        return None
    pen = Pen(person, "h")
    events = [pen.track("Application Installed", starts[0], version=VERSION)]
    if not person.push_allowed:
        events.append(pen.track("Consent Preference Updated", starts[0] + 1000, categories={"push": False}))
    for number, start in enumerate(starts):
        events.append(pen.track("Application Opened", start + 2000, version=VERSION))
        events.append(_view(pen, number, start + 4000))
    return Post("/v1/import", {"batch": events})


def arrival(person: Person, run: int, now_ms: int) -> Post | None:
    """The phone's first post of this run; None for one that is not used today."""
    first = habits.arrival(person, run, now_ms)
    if first is None:
        return None
    cities = ("Default City Set", "City Added", "City Searched")
    events = [event for event in first.body["batch"] if event.get("event") not in cities]
    return Post(first.path, {**first.body, "batch": events}, first.copies)


@dataclass(frozen=True, slots=True)
class Browsing(Visit):
    """Someone looks at products, and may read a guide or wish for one."""

    reads: bool = False
    wishes: bool = False

    @property
    def events(self) -> int:
        return 2 + self.screens + self.reads + self.wishes

    def doings(self, pen: Pen, at: int) -> Iterator[dict[str, Any]]:
        for n in range(self.screens):
            yield _view(pen, self.number + n, at + 1000 * (n + 1))
        if self.reads:
            yield pen.track("Guide Viewed", at + 8000, guide_id=f"guide-{self.number % 12}")
        if self.wishes:
            yield pen.track("Product Added to Wishlist", at + 9000, product_id=_product(self.number))


def visits(seed: int, run: int, everyone: Sequence[Person]) -> Iterator[Visit]:
    """Visits for ever, by those who use the app today and keep it."""
    about = [person for person in everyone if person.opens_today and not person.leaves]
    draw = random.Random(f"shopping:{seed}:{run}")  # noqa: S311
    number = 0
    while about:
        number += 1
        yield Browsing(
            person=draw.choice(about),
            number=number,
            screens=draw.randint(1, 4),
            search=None,
            fault=0,
            copies=2 if draw.randrange(habits.TWICE_IN) == 0 else 1,
            reads=draw.random() * 100 < READS_PERCENT,
            wishes=draw.random() * 100 < WISHES_PERCENT,
        )


def _view(pen: Pen, number: int, at_ms: int) -> dict[str, Any]:
    category = CATEGORIES[number % len(CATEGORIES)]
    return pen.track("Product Viewed", at_ms, product_id=_product(number), category=category)


def _product(number: int) -> str:
    return f"cd-{number % 40}"
