"""What tracking plan does traffic suggest? Events as they were posted in, a plan that accepts them all out.

What it remembers is bounded, whatever is posted. It tells a value only where it is one of few, was posted by several
users each, and neither looks like a person's nor stands under a name that says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from services.ingest.domain.intake import Posted
from services.ingest.domain.tracking_plan import UNCHECKED
from shared.contracts.personal import personal

MAX_EVENTS = 500
MAX_PROPERTIES = 100
MAX_DEPTH = 4
MAX_VALUES = 12
MAX_VALUE_CHARS = 40
LEAST_PER_VALUE = 10
"""An enum has at least so many events for each of its values."""
LEAST_USERS = 3
"""A value is told only where so many users posted it."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_PERSONAL = frozenset({
    "address", "age", "birth", "birthdate", "birthday", "dob", "email", "first", "firstname", "gender", "iban", "ip",
    "last", "lastname", "lat", "latitude", "lng", "lon", "longitude", "mail", "mobile", "name", "passport", "password",
    "phone", "postcode", "salary", "secret", "session", "sex", "ssn", "street", "surname", "tel", "telephone", "token",
    "user", "username", "zip",
})  # fmt: skip


class Shape:
    """What was seen in one place: how often, of which types, and what lies within."""

    __slots__ = ("count", "high", "items", "low", "more", "properties", "types", "users", "values")

    def __init__(self) -> None:
        self.count = 0
        self.types: Counter[str] = Counter()
        self.low: float = 0
        self.high: float = 0
        self.users: set[int] = set()
        """Some of the users it was seen of, up to `LEAST_USERS`."""
        self.values: dict[str, set[int]] | None = {}
        """Texts, with some users of each; None where they are too many or cannot be told."""
        self.properties: dict[str, Shape] = {}
        self.items: Shape | None = None
        self.more = 0
        """Properties left out, for their names or for their number."""

    def see(self, value: Any, user: int, depth: int = 0) -> None:
        self.count += 1
        kind = type_of(value)
        self.types[kind] += 1
        if len(self.users) < LEAST_USERS:
            self.users.add(user)
        if kind == "string":
            self._text(value, user)
        elif kind in ("integer", "number"):
            first = self.types["integer"] + self.types["number"] == 1
            self.low = value if first else min(self.low, value)
            self.high = value if first else max(self.high, value)
        elif kind == "object" and depth < MAX_DEPTH:
            self._object(value, user, depth)
        elif kind == "array" and depth < MAX_DEPTH:
            self.items = self.items or Shape()
            for item in value:
                self.items.see(item, user, depth + 1)

    def _object(self, value: Mapping[str, Any], user: int, depth: int) -> None:
        for name, inner in value.items():
            known = self.properties.get(name)
            if known is None:
                if len(self.properties) == MAX_PROPERTIES or not tellable(name):
                    self.more += 1
                    continue
                known = self.properties[name] = Shape()
            known.see(inner, user, depth + 1)

    def _text(self, value: str, user: int) -> None:
        if self.values is None:
            return
        users = self.values.get(value)
        if users is None:
            endless = len(value) > MAX_VALUE_CHARS or any(map(str.isdigit, value))
            if endless or len(self.values) == MAX_VALUES or not tellable(value):
                self.values = None
                return
            users = self.values[value] = set()
        if len(users) < LEAST_USERS:
            users.add(user)

    def enum(self, name: str) -> list[str]:
        """The values this place has, where they may be told and seem to be all there are: not a version, nor an id."""
        if not self.values or len(self.values) < 2 or set(self.types) != {"string"} or names_a_person(name):
            return []
        few = self.count >= LEAST_PER_VALUE * len(self.values)
        return sorted(self.values) if few and all(len(u) >= LEAST_USERS for u in self.values.values()) else []

    def span(self, name: str) -> tuple[float, float] | None:
        """The least and the greatest number, where they may be told."""
        numbers = self.types["integer"] + self.types["number"]
        return (
            (self.low, self.high) if numbers and len(self.users) >= LEAST_USERS and not names_a_person(name) else None
        )


class Inference:
    """What was seen so far, event by event."""

    def __init__(self, least: int) -> None:
        """`least`: events seen less often are left out."""
        self.least = least
        self.seen = 0
        self._events: dict[str, Shape] = {}
        self._left_out: Counter[str] = Counter()

    def see(self, event: Posted | None) -> None:
        self.seen += 1
        if event is None:
            self._left_out["records that are no event of a user"] += 1
        elif event.name in UNCHECKED:
            self._left_out["calls that carry no properties"] += 1
        elif not tellable(event.name):
            self._left_out["events whose name may be a person's, or cannot be written"] += 1
        else:
            shape = self._events.get(event.name)
            if shape is None:
                if len(self._events) == MAX_EVENTS:
                    self._left_out[f"events of more than {MAX_EVENTS} names"] += 1
                    return
                shape = self._events[event.name] = Shape()
            shape.see(event.properties, hash(event.user_id))

    def events(self) -> dict[str, Shape]:
        """Those seen often enough, the most frequent first."""
        often = [(name, shape) for name, shape in self._events.items() if shape.count >= self.least]
        return dict(sorted(often, key=lambda one: (-one[1].count, one[0])))

    def left_out(self) -> list[str]:
        """What the plan does not cover, one line each."""
        rare = [shape.count for shape in self._events.values() if shape.count < self.least]
        found = {
            **self._left_out,
            f"events seen less than {self.least} times": sum(rare),
            "properties of events with too many, or whose name may be a person's": sum(_more(self.events().values())),
        }
        return [f"{what}: {count:,}" for what, count in found.items() if count]


def type_of(value: Any) -> str:
    """The JSON Schema type; a whole number written with a point is a number."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def tellable(text: str) -> bool:
    """Whether a name or a value may be written down: it can be read, and names nobody."""
    return 0 < len(text) <= 128 and text.isprintable() and not personal(text)


def names_a_person(name: str) -> bool:
    """Whether values under this name are likely to be a person's."""
    return not _PERSONAL.isdisjoint(word.lower() for word in _WORD.findall(name))


def _more(shapes: Iterable[Shape]) -> Iterable[int]:
    for shape in shapes:
        yield shape.more
        yield from _more(shape.properties.values())
        if shape.items is not None:
            yield from _more((shape.items,))
