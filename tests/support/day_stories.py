"""What thousands of people do on one day, and what they had done before, so that every campaign of a pack finds someone.

A story puts what a campaign waits for so far back that it falls due within the day.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, time, timedelta
from functools import partial
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from services.demo import habits, shopping
from services.demo.habits import Pen, Post, Visit
from services.demo.phones import Person

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
RUN = 1
"""The demo's number of a run: part of every message id."""
_BY_HOUR = (2, 1, 1, 1, 1, 3, 8, 12, 10, 7, 5, 5, 7, 6, 5, 5, 6, 8, 9, 9, 8, 7, 6, 4)
"""How often people look at their phones, by the hour of their own clock."""

Event = dict[str, Any]
Told = Callable[[Pen, int], Iterable[Event]]


class Stroke(NamedTuple):
    """Something a phone posts at a moment of the day."""

    at: int
    number: int
    make: Callable[[int], Post | None]


class Script(NamedTuple):
    """What was imported and what phones uploaded late before the day begins, and what they post during it, in order."""

    imported: list[Post]
    late: list[Post]
    strokes: list[Stroke]


class _Writer:
    """Gathers a script; `begin` and `end` are the day's."""

    def __init__(self, seed: int, begin: int, end: int) -> None:
        self.draw = random.Random(f"day:{seed}")
        self.begin, self.end = begin, end
        self.script = Script([], [], [])

    def imported(self, person: Person, ages: Sequence[int], tell: Told) -> None:
        """`tell` at each of these ages, counted back from some moment of the day."""
        moment, pen = self.moment(person), Pen(person, "h")
        events = [event for age in sorted(ages, reverse=True) for event in tell(pen, moment - age)]
        self.script.imported.append(Post("/v1/import", {"batch": events}))

    def late(self, person: Person, age: int, tell: Told) -> None:
        """Uploaded late: what happened so long before some moment of the day."""
        events = list(tell(Pen(person, "e"), self.moment(person) - age))
        self.script.late.append(Post("/v1/batch", {"batch": events}))

    def during(self, person: Person, tell: Told) -> None:
        """At some moment of the day."""
        series = f"d{len(self.script.strokes)}"

        def make(now: int) -> Post:
            return Post("/v1/batch", {"batch": list(tell(Pen(person, series), now - MINUTE))})

        self.stroke(self.moment(person), make)

    def stroke(self, at: int, make: Callable[[int], Post | None]) -> None:
        self.script.strokes.append(Stroke(at, len(self.script.strokes), make))

    def moment(self, person: Person) -> int:
        """When this person may look at their phone, by the clock on their wall."""
        zone = ZoneInfo(person.timezone)
        first = datetime.fromtimestamp(self.begin / 1000, UTC).astimezone(zone).date()
        while True:
            wall = time(self.draw.choices(range(24), _BY_HOUR)[0], self.draw.randrange(60), self.draw.randrange(60))
            days = (first + timedelta(days=n) for n in range(3))
            moments = [round(datetime.combine(day, wall, zone).timestamp() * 1000) for day in days]
            inside = [at for at in moments if self.begin + 10 * MINUTE <= at < self.end - 10 * MINUTE]
            if inside:
                return self.draw.choice(inside)

    def done(self) -> Script:
        self.script.strokes.sort()
        return self.script


def _opened(pen: Pen, at: int) -> Event:
    return pen.track("Application Opened", at, version=habits.VERSION)


def _known(person: Person, told: Told) -> Told:
    """What is told, begun by a visit that brings the phone's token and what its owner allows."""

    def tell(pen: Pen, at: int) -> Iterator[Event]:
        if not person.push_allowed:
            yield pen.track("Consent Preference Updated", at - 5000, categories={"push": False})
        yield _opened(pen, at - 4000)
        yield from told(pen, at)

    return tell


def weather(seed: int, everyone: Sequence[Person], begin: int, end: int) -> Script:
    """Most live as in the demo; one in eight has done what a campaign with a delay waits for, or falls silent today."""
    write = _Writer(seed, begin, end)
    active = [person for person in everyone if person.opens_today and person.home is not None]
    for number, person in enumerate(everyone):
        elsewhere = write.draw.choice(active).home
        assert elsewhere is not None
        match number % 24:
            case 0:
                write.late(person, DAY, partial(_installs, person, write.draw.random() < 0.3))
            case 1:
                write.late(person, 2 * DAY, _known(person, partial(_searches, elsewhere, write.draw.random() < 0.3)))
            case 2:
                write.imported(person, [30 * DAY, 33 * DAY], _known(person, lambda pen, at: [pen.screen("Today", at)]))
            case _:
                _as_ever(write, person, elsewhere)
    return write.done()


def _as_ever(write: _Writer, person: Person, elsewhere: Any) -> None:
    if (known := habits.history(person, write.begin)) is not None:
        write.script.imported.append(known)
    if not person.opens_today and person.habit != "unopened":
        return
    moments = sorted(
        write.moment(person) for _ in range(1 if person.habit == "returning" else write.draw.randint(1, 3))
    )
    write.stroke(moments[0], partial(habits.arrival, person, RUN))
    for at in moments[1:]:
        searched = elsewhere if person.home is not None and write.draw.random() < 0.3 else None
        twice = 2 if write.draw.random() < 0.02 else 1
        visit = Visit(person, len(write.script.strokes), write.draw.randint(1, 3), searched, 0, twice)
        write.stroke(at, partial(_look, visit))


def _look(visit: Visit, now_ms: int) -> Post:
    return visit.post(RUN, now_ms, visit.events)


def _installs(person: Person, finds_city: bool, pen: Pen, at: int) -> Iterator[Event]:
    yield pen.track("Application Installed", at, version=habits.VERSION)
    if not person.push_allowed:
        yield pen.track("Consent Preference Updated", at + 500, categories={"push": False})
    yield _opened(pen, at + 1000)
    if finds_city and person.home is not None:
        yield pen.city("Default City Set", at + HOUR, person.home)


def _searches(city: Any, adds: bool, pen: Pen, at: int) -> Iterator[Event]:
    yield pen.city("City Searched", at, city)
    if adds:
        yield pen.city("City Added", at + HOUR, city)


def shop(seed: int, everyone: Sequence[Person], begin: int, end: int) -> Script:
    """Each person has one of the stories that the shop's campaigns are about."""
    write = _Writer(seed, begin, end)
    for number, person in enumerate(everyone):
        _SHOP[number % len(_SHOP)](write, person, write.draw.random())
    return write.done()


def _orders(pen: Pen, at: int) -> Iterator[Event]:
    yield pen.track(
        "Order Completed", at, order_id=f"o-{at}", revenue=29.5, currency="USD", channel="online",
        category=shopping.CATEGORIES[at // MINUTE % len(shopping.CATEGORIES)],
    )  # fmt: skip


def _views(pen: Pen, at: int) -> Iterator[Event]:
    for n in range(3):
        yield pen.track("Product Viewed", at + n * 1000, product_id=f"cd-{at % 40 + n}", category="jazz")


def _visits(pen: Pen, at: int) -> Iterator[Event]:
    yield pen.track("Product Viewed", at, product_id=f"cd-{at % 40}", category="folk")


def _ordered(age: int, then: Callable[[Pen, int], Iterable[Event]] | None = None) -> Callable[..., None]:
    """An order so long before a moment of the day; three in ten have done since what calls the campaign off, two in
    ten were not content."""

    def story(write: _Writer, person: Person, chance: float) -> None:
        def tell(pen: Pen, at: int) -> Iterator[Event]:
            yield from _orders(pen, at)
            if then is not None and chance < 0.3:
                yield from then(pen, at)
            if chance > 0.8:
                yield pen.track("Feedback Given", at + HOUR, score=3)

        write.late(person, age, _known(person, tell))

    return story


def _orders_today(*earlier: int) -> Callable[..., None]:
    """An order today, after those of so many days ago."""

    def story(write: _Writer, person: Person, _: float) -> None:
        if earlier:
            write.imported(person, [days * DAY for days in earlier], _known(person, _orders))
        write.during(person, _known(person, _orders))

    return story


def _silent(days: int) -> Callable[..., None]:
    def story(write: _Writer, person: Person, _: float) -> None:
        write.imported(person, [days * DAY, (days + 9) * DAY], _known(person, _visits))

    return story


def _returns(write: _Writer, person: Person, _: float) -> None:
    write.imported(person, [45 * DAY], _known(person, _visits))
    write.during(person, _known(person, _visits))


def _undecided(write: _Writer, person: Person, chance: float) -> None:
    write.during(person, _known(person, _views))
    if chance < 0.2:
        write.during(person, _orders)


def _delayed(age: int, event: str, **properties: str) -> Callable[..., None]:
    """Something so long ago that its campaign is due today; some have ordered since."""

    def story(write: _Writer, person: Person, chance: float) -> None:
        def tell(pen: Pen, at: int) -> Iterator[Event]:
            yield pen.track(event, at, **properties)
            if chance < 0.2:
                yield from _orders(pen, at + HOUR)

        write.late(person, age, _known(person, tell))

    return story


def _promising(write: _Writer, person: Person, chance: float) -> None:
    """A second day with an order, two days before a moment of the day."""
    write.imported(person, [20 * DAY], _known(person, _orders))
    _ordered(2 * DAY)(write, person, chance)


def _cancels(pen: Pen, at: int) -> Iterator[Event]:
    yield pen.track("Order Cancelled", at + HOUR, order_id=f"o-{at}")


def _reviews(pen: Pen, at: int) -> Iterator[Event]:
    yield pen.track("Product Reviewed", at + DAY, product_id="cd-1", rating=5)


_SHOP: list[Callable[[_Writer, Person, float], None]] = [
    _orders_today(),
    _orders_today(20),
    _orders_today(50, 40, 30),
    _ordered(4 * DAY, lambda pen, at: [pen.track("Product Viewed", at + HOUR, product_id="cd-1", category="rock")]),
    _ordered(7 * DAY, _cancels),
    _ordered(10 * DAY, _reviews),
    _ordered(14 * DAY, lambda pen, at: _orders(pen, at + 2 * DAY)),
    _promising,
    _undecided,
    _delayed(2 * DAY, "Product Added to Wishlist", product_id="cd-7"),
    _delayed(DAY, "Guide Viewed", guide_id="guide-3"),
    _silent(21),
    _silent(30),
    _silent(180),
    _returns,
]
