"""Who carries the simulated phones: where they live, what they allow, how often they look at the weather.

Pure and repeatable: everything follows from the seed, and from which places there are.
"""

from __future__ import annotations

import hashlib
import random  # noqa: TID251  seeded: the same seed makes the same people
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from shared.contracts.identifiers import bucket
from shared.gazetteer import Gazetteer, Place

Habit = Literal["unopened", "newcomer", "settled", "regular", "returning", "quiet", "silent", "lapsed"]

HABITS: dict[Habit, int] = {
    "newcomer": 34, "settled": 20, "regular": 13, "returning": 8, "quiet": 6, "silent": 12, "lapsed": 4, "unopened": 3,
}  # fmt: skip
"""Per cent of the people. `unopened` installs and never looks, `newcomer` installs now, `settled` looks now and
then, `regular` on most days, `returning` comes back after more than a month, `quiet` has not looked for weeks,
`silent` for a month to the day, `lapsed` for a quarter of a year."""

OPENS_TODAY: frozenset[Habit] = frozenset({"newcomer", "settled", "regular", "returning"})
_NEW: frozenset[Habit] = frozenset({"newcomer", "unopened"})

PLATFORMS = {"ios": 55, "android": 42, "web": 3}
LOCALES = {"en-US": 85, "es-US": 13, "fr-CA": 2}
WITHOUT_TOKEN_PERCENT = 5
WITHDRAWN_PERCENT = 4
WITHOUT_CITY_PERCENT = 12
TAPS_PERCENT = 24
COMES_BACK_PERCENT = 15
"""Of those who were silent, so many come back today, whether they are sent anything or not."""
LEAVES_PERCENT = 2
"""Of those who look today, so many delete the app afterwards."""


@dataclass(frozen=True, slots=True)
class Person:
    """One phone and its owner. `days` are the days before today on which it was used, the longest ago first;
    a `silent` one's single day is the instant it was last used, counted back from now in hours."""

    user_id: str
    habit: Habit
    home: Place | None
    added: tuple[Place, ...]
    searched: tuple[Place, ...]
    timezone: str
    locale: str
    platform: str
    token: str | None
    push_allowed: bool
    days: tuple[int, ...]
    hours: int
    comes_back: bool
    leaves: bool

    @property
    def opens_today(self) -> bool:
        return self.habit in OPENS_TODAY

    @property
    def deleted(self) -> bool:
        """The app was deleted weeks ago, without a word: nobody knows until a push to its token is refused.

        Those who never set a city; so no alert is meant for them, and each is pushed to once."""
        return self.habit == "silent" and self.home is None


def people(seed: int, count: int, gazetteer: Gazetteer, run: int = 0) -> list[Person]:
    """`count` people, spread over the cities of the United States as its population is.

    `run` is the number of earlier runs in the same home: whoever installs the app now is someone new each time,
    the others are the same people again.
    """
    cities = [place for city_id in gazetteer.by_same("000000") if (place := gazetteer.get(city_id))]
    towns = _Towns(cities)
    return [_person(seed, number, run, towns) for number in range(count)]


class _Towns:
    """Cities to draw from, by population."""

    def __init__(self, cities: Sequence[Place]) -> None:
        self._cities = cities
        self._weights = list(accumulate(max(place.population, 1) for place in cities))
        self._by_state: dict[str, tuple[list[Place], list[int]]] = {}
        for place in cities:
            near, weights = self._by_state.setdefault(place.state, ([], []))
            near.append(place)
            weights.append((weights[-1] if weights else 0) + max(place.population, 1))

    def anywhere(self, draw: random.Random) -> Place:
        return draw.choices(self._cities, cum_weights=self._weights)[0]

    def near(self, draw: random.Random, home: Place) -> Place:
        """Two of three other cities that matter to someone lie in their own state."""
        if draw.random() < 1 / 3:
            return self.anywhere(draw)
        cities, weights = self._by_state[home.state]
        return draw.choices(cities, cum_weights=weights)[0]


def _person(seed: int, number: int, run: int, towns: _Towns) -> Person:
    draw = random.Random(f"perennial:{seed}:{number}")  # noqa: S311  nothing here is a secret
    habit: Habit = draw.choices(list(HABITS), weights=list(HABITS.values()))[0]
    where = towns.anywhere(draw)
    has_city = habit != "unopened" and draw.random() * 100 >= WITHOUT_CITY_PERCENT
    added = _others(draw, towns, where, draw.choices((0, 1, 2, 3), (45, 30, 17, 8))[0])
    searched = _others(draw, towns, where, draw.choices((0, 1, 2), (50, 35, 15))[0])
    platform = draw.choices(list(PLATFORMS), weights=list(PLATFORMS.values()))[0]
    locale = draw.choices(list(LOCALES), weights=list(LOCALES.values()))[0]
    has_token = draw.random() * 100 >= WITHOUT_TOKEN_PERCENT
    allowed = draw.random() * 100 >= WITHDRAWN_PERCENT
    days, hours = _history(draw, habit)
    name = f"{seed}:{number}" if habit not in _NEW or not run else f"{seed}:{number}:{run}"
    user_id = "demo-" + hashlib.blake2b(name.encode(), digest_size=6).hexdigest()
    return Person(
        user_id=user_id,
        habit=habit,
        home=where if has_city else None,
        added=added if has_city else (),
        searched=searched if has_city else (),
        timezone=where.timezone,
        locale=locale,
        platform=platform,
        token=f"token-{user_id}" if has_token else None,
        push_allowed=allowed,
        days=days,
        hours=hours,
        comes_back=habit == "silent" and has_city and draw.random() * 100 < COMES_BACK_PERCENT,
        leaves=habit in OPENS_TODAY and draw.random() * 100 < LEAVES_PERCENT,
    )


def _others(draw: random.Random, towns: _Towns, home: Place, count: int) -> tuple[Place, ...]:
    found = {place.city_id: place for place in (towns.near(draw, home) for _ in range(count))}
    found.pop(home.city_id, None)
    return tuple(found.values())


def _history(draw: random.Random, habit: Habit) -> tuple[tuple[int, ...], int]:
    """Days before today on which the phone was used, and hours for a `silent` one.

    No day lies so near the end of a span of the shipped packs (7, 14, 30, 90 days) that the hour of the run
    would decide on which side it falls.
    """
    match habit:
        case "settled":
            days = [*draw.sample([1, 2, 3, 4, 5], draw.randint(1, 2)), *draw.sample(range(9, 27), draw.randint(0, 4))]
        case "regular":
            days = [
                1,
                *draw.sample([2, 3, 4, 5, 6, 8, 9, 10, 11, 12], 8),
                *draw.sample(range(16, 28), draw.randint(2, 6)),
            ]
        case "returning":
            days = draw.sample(range(33, 80), draw.randint(1, 5))
        case "quiet":
            days = draw.sample(range(17, 28), draw.randint(1, 5))
        case "lapsed":
            days = draw.sample(range(94, 160), draw.randint(1, 4))
        case "silent":
            return (), 30 * 24 + draw.randint(2, 20)
        case _:
            days = []
    # 14 days to the day: `at_risk` begins there
    return tuple(sorted((day for day in days if day != 14), reverse=True)), 0


def taps(seed: int, user_id: str, campaign: str, number: int) -> bool:
    """Whether this person taps the `number`-th push of a campaign; keyed by nothing that differs between runs."""
    return bucket(f"tap:{seed}", f"{user_id}:{campaign}:{number}", 100) < TAPS_PERCENT
