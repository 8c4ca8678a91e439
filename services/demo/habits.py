"""What a simulated phone posts, and when: Segment's calls, as its mobile libraries make them.

Pure: the present is an argument. Message ids depend on the person, the run and the place in it only.
"""

from __future__ import annotations

import random  # noqa: TID251  seeded: the same seed makes the same visits
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.demo.phones import Person
from shared.gazetteer import Place
from shared.process.clock import iso

DAY_MS = 86_400_000
VERSION = "4.2.0"
SCREENS = ("Today", "Hourly", "Ten Days", "Radar", "Alerts", "Settings")
TWICE_IN = 50
"""One post in so many is sent a second time, as by a phone that never saw the answer."""
FAULTY_IN = 40
"""One visit in so many holds an event that cannot be accepted."""


@dataclass(frozen=True, slots=True)
class Post:
    """One request: `body` for `path`, sent `copies` times."""

    path: str
    body: dict[str, Any]
    copies: int = 1

    @property
    def events(self) -> int:
        return len(self.body["batch"])


class Pen:
    """Writes the events of one person; `series` keeps the ids of different posts apart."""

    def __init__(self, person: Person, series: str) -> None:
        self._person, self._series = person, series
        self._number = 0
        device = {"id": f"phone-{person.user_id}", "type": person.platform}
        if person.token:
            device["token"] = person.token
        self._context = {
            "device": device,
            "locale": person.locale,
            "timezone": person.timezone,
            "app": {"name": "Perennial Weather", "version": VERSION},
        }

    def track(self, name: str, at_ms: int, /, **properties: Any) -> dict[str, Any]:
        return self._call({"type": "track", "event": name, "properties": properties}, at_ms)

    def screen(self, name: str, at_ms: int) -> dict[str, Any]:
        return self._call({"type": "screen", "name": name, "properties": {"name": name}}, at_ms)

    def city(self, name: str, at_ms: int, place: Place) -> dict[str, Any]:
        return self.track(name, at_ms, city=place.name, state=place.state, country=place.country)

    def _call(self, call: dict[str, Any], at_ms: int) -> dict[str, Any]:
        self._number += 1
        return {
            **call,
            "userId": self._person.user_id,
            "messageId": f"{self._person.user_id}-{self._series}-{self._number}",
            "timestamp": iso(at_ms),
            "context": self._context,
        }


def history(person: Person, now_ms: int) -> Post | None:
    """What an earlier tool had recorded of them, for `/v1/import`; None where there is nothing.

    Each day is met at about noon UTC, so that the number of days does not depend on the hour of the run.
    """
    midnight = now_ms - now_ms % DAY_MS
    starts = [midnight - day * DAY_MS + DAY_MS // 2 for day in person.days]
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
        events.append(pen.screen(SCREENS[number % len(SCREENS)], start + 4000))
        if number == 0:
            events += _cities(pen, person, start + 6000)
    return Post("/v1/import", {"batch": events})


def arrival(person: Person, run: int, now_ms: int) -> Post | None:
    """The phone's first post of this run; None for one that is not used today."""
    if not person.opens_today and person.habit != "unopened":
        return None
    pen = Pen(person, f"{run}a")
    events: list[dict[str, Any]] = []
    at = _began(now_ms)
    new = not person.days
    if new:
        events.append(pen.track("Application Installed", at, version=VERSION))
        if not person.push_allowed:
            # before anything that a push could answer
            events.append(pen.track("Consent Preference Updated", at + 500, categories={"push": False}))
    if person.opens_today:
        events.append(pen.track("Application Opened", at + 1000, version=VERSION, from_background=not new))
        events.append(pen.screen(SCREENS[0], at + 2000))
        if new:
            events += _cities(pen, person, at + 3000)
        events.append(pen.track("Application Backgrounded", at + 15_000))
    return Post("/v1/batch", {"batch": events, "sentAt": iso(now_ms)}, _copies(person.user_id, run))


def _cities(pen: Pen, person: Person, at: int) -> Iterator[dict[str, Any]]:
    if person.home is not None:
        yield pen.city("Default City Set", at, person.home)
    for number, place in enumerate(person.added):
        yield pen.city("City Added", at + 1000 * (number + 1), place)
    for number, place in enumerate(person.searched):
        yield pen.city("City Searched", at + 5000 + 1000 * number, place)


def _began(now_ms: int) -> int:
    """When a visit began that is posted now: a moment ago, but today, so that days are counted alike at any hour."""
    return max(now_ms - 20_000, now_ms - now_ms % DAY_MS)


def _copies(user_id: str, run: int) -> int:
    return 2 if random.Random(f"{user_id}:{run}").randrange(TWICE_IN) == 0 else 1  # noqa: S311


@dataclass(frozen=True, slots=True)
class Visit:
    """Someone looks at the app: `number` tells it from every other visit of the run."""

    person: Person
    number: int
    screens: int
    search: Place | None
    fault: int
    copies: int

    @property
    def events(self) -> int:
        return 2 + self.screens + (self.search is not None) + (self.fault > 0)

    def post(self, run: int, now_ms: int, most: int) -> Post:
        """The visit as one post of at most `most` events."""
        pen = Pen(self.person, f"{run}v{self.number}")
        at = _began(now_ms)
        events = [pen.track("Application Opened", at, version=VERSION, from_background=True)]
        events += self.doings(pen, at)
        events.append(pen.track("Application Backgrounded", at + 12_000))
        return Post("/v1/batch", {"batch": events[:most], "sentAt": iso(now_ms)}, self.copies)

    def doings(self, pen: Pen, at: int) -> Iterator[dict[str, Any]]:
        """What happens within twelve seconds of opening the app at `at`."""
        for n in range(self.screens):
            yield pen.screen(SCREENS[n % len(SCREENS)], at + 1000 * (n + 1))
        if self.search is not None:
            yield pen.city("City Searched", at + 8000, self.search)
        if self.fault:
            yield _faulty(pen, self.fault, at + 9000)


def visits(seed: int, run: int, everyone: Sequence[Person]) -> Iterator[Visit]:
    """Visits for ever, by those who use the app today and keep it."""
    about = [person for person in everyone if person.opens_today and not person.leaves]
    draw = random.Random(f"visits:{seed}:{run}")  # noqa: S311
    number = 0
    while about:
        number += 1
        person = draw.choice(about)
        searches = person.home is not None and draw.random() < 0.2
        # someone's city is what others search for
        elsewhere = draw.choice(about).home if searches else None
        fault = draw.randint(1, FAULTS) if draw.randrange(FAULTY_IN) == 0 else 0
        yield Visit(person, number, draw.randint(1, 4), elsewhere, fault, 2 if draw.randrange(TWICE_IN) == 0 else 1)


def budgeted(found: Iterable[Visit], total: int) -> Iterator[tuple[Visit, int]]:
    """Visits with how many events each may post, so that exactly `total` are posted; copies count."""
    left = total
    for visit in found:
        if left < visit.copies:
            visit = replace(visit, copies=1)
        if left <= 0:
            return
        most = min(visit.events, left // visit.copies)
        left -= most * visit.copies
        yield visit, most


FAULTS = 5


def _faulty(pen: Pen, kind: int, at: int) -> dict[str, Any]:
    """An event that ingest refuses, each kind for its own reason."""
    match kind:
        case 1:
            return pen.track("City Searched", at, city="Atlantis", state="TX")
        case 2:
            return pen.track("Screen Viewed", at, name="Profile of jane.doe@example.com")
        case 3:
            return pen.track("Screen Viewed", at + 3 * DAY_MS, name="Today")
        case 4:
            return {**pen.track("Screen Viewed", at), "properties": "Today"}
        case _:
            return {name: value for name, value in pen.track("", at).items() if name != "event"}


def tap(person: Person, message_id: str, now_ms: int) -> Post:
    """The person taps a push, which opens the app; the id makes a repeated tap of the same push one event.

    All of it is told at its own moment: it began after the push was sent."""
    pen = Pen(person, f"t{message_id}")
    events = [
        pen.track("Push Notification Tapped", now_ms, message_id=message_id),
        pen.track("Application Opened", now_ms, version=VERSION, from_background=True),
        pen.screen("Alerts", now_ms),
    ]
    return Post("/v1/batch", {"batch": events, "sentAt": iso(now_ms)})


def comeback(person: Person, run: int, now_ms: int) -> Post:
    """Someone who was silent for a month looks again, of their own accord."""
    pen = Pen(person, f"{run}c")
    events = [
        pen.track("Application Opened", now_ms, version=VERSION, from_background=False),
        pen.screen(SCREENS[0], now_ms),
    ]
    return Post("/v1/batch", {"batch": events, "sentAt": iso(now_ms)})


def farewell(person: Person, run: int, now_ms: int) -> Post:
    """The app is deleted, as a company's attribution service tells it."""
    uninstalled = Pen(person, f"{run}u").track("Application Uninstalled", now_ms)
    return Post("/v1/batch", {"batch": [uninstalled], "sentAt": iso(now_ms)})
