"""What the push sandbox remembers: the pushes that arrived, how it is to behave, the tokens it issued."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from itertools import islice
from typing import Annotated, Any, Literal

import msgspec

from services.demo.sandbox_wire import PROVIDERS, Provider, Told
from shared.contracts.identifiers import bucket
from shared.process.clock import iso

Mode = Literal["ok", "429", "500", "503", "hang", "reset", "accept_then_reset", "unregistered", "bad_token"]

KEEP = 20_000
"""So many of the last pushes can be seen, where nothing else is said."""


class Arrived(msgspec.Struct, frozen=True):
    """One push as `GET /pushes` shows it. `n` counts from 1 and is never used twice."""

    n: int
    provider: Provider
    token: str
    title: str
    body: str
    data: dict[str, Any]
    collapse_id: str
    ttl_seconds: int | None
    received_at: str
    sound: bool
    action: str


class Mailbox:
    """The last `capacity` pushes; all are counted. What phones show of them now is kept beside them."""

    def __init__(self, capacity: int = KEEP) -> None:
        self._kept: deque[Arrived] = deque(maxlen=capacity)
        self._next = 1
        self.counts: dict[str, int] = dict.fromkeys(PROVIDERS, 0)
        self.screens = Screens(capacity)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def last(self) -> int:
        return self._next - 1

    def add(self, provider: Provider, told: Told, real_ms: int) -> Arrived:
        arrived = Arrived(
            self._next,
            provider,
            told.token,
            told.title,
            told.body,
            told.data,
            told.collapse_id,
            told.ttl_seconds,
            iso(real_ms),
            told.sound,
            told.action,
        )
        self.screens.take(arrived, real_ms)
        self._kept.append(arrived)
        self._next += 1
        self.counts[provider] += 1
        return arrived

    def get(self, n: int) -> Arrived | None:
        """Push number `n`, while it is kept."""
        at = n - (self._next - len(self._kept))
        return self._kept[at] if 0 <= at < len(self._kept) else None

    def since(self, n: int, token: str | None, limit: int) -> tuple[list[Arrived], int | None]:
        """Those after `n`, oldest first, and the cursor to go on from (None: no more for now)."""
        first = self._next - len(self._kept)
        later = islice(self._kept, max(0, n + 1 - first), None)
        found = list(islice((a for a in later if token is None or a.token == token), limit + 1))
        return found[:limit], found[limit - 1].n if len(found) > limit else None

    def clear(self) -> None:
        """Forgets and counts from 0; numbers go on, so that a cursor never skips."""
        self._kept.clear()
        self.screens.clear()
        self.counts = dict.fromkeys(PROVIDERS, 0)


class Screens:
    """What each phone shows: one notification per collapse id, the last that came, until it ends or is taken away.

    An app does as it is told (docs/app-developers.md): what has expired is removed, and so is what is retracted. The
    oldest go when there are too many."""

    def __init__(self, capacity: int = KEEP) -> None:
        self._capacity = capacity
        self._shown: OrderedDict[tuple[str, str], tuple[Arrived, int | None]] = OrderedDict()

    def take(self, arrived: Arrived, real_ms: int) -> None:
        place = (arrived.token, arrived.collapse_id or f"#{arrived.n}")
        self._shown.pop(place, None)
        if arrived.action in ("show", "replace"):
            ttl = arrived.ttl_seconds
            self._shown[place] = (arrived, None if ttl is None else real_ms + ttl * 1000)
            if len(self._shown) > self._capacity:
                self._shown.popitem(last=False)

    def now(self, real_ms: int, token: str | None = None) -> list[Arrived]:
        """What is shown at that moment, on one phone or on all; what came last is last."""
        return [
            arrived
            for (phone, _), (arrived, until) in self._shown.items()
            if (token is None or phone == token) and (until is None or real_ms < until)
        ]

    def clear(self) -> None:
        self._shown.clear()


class Behaviour(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one provider (or, when set without one, every provider) answers a `share` of the pushes."""

    mode: Mode = "ok"
    provider: Provider | None = None
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    retry_after_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 1.0
    delay_ms: Annotated[int, msgspec.Meta(ge=0, le=600_000)] = 0


OK = Behaviour()
DEAD = Behaviour("unregistered")


class Behaviours:
    """What each provider does next. The share is met exactly and without chance, so that a run can be
    repeated: every 1/share-th push for failures of the service, a fixed share of all tokens for dead ones. Tokens that
    were buried are dead whatever else is asked for."""

    def __init__(self) -> None:
        self.current: dict[Provider, Behaviour] = dict.fromkeys(PROVIDERS, OK)
        self._owed: dict[Provider, float] = dict.fromkeys(PROVIDERS, 0.0)
        self._buried: set[str] = set()

    def bury(self, token: str) -> None:
        """The app is gone from the phone that had this token."""
        self._buried.add(token)

    def set(self, behaviour: Behaviour) -> None:
        for provider in (behaviour.provider,) if behaviour.provider else PROVIDERS:
            self.current[provider] = behaviour
            self._owed[provider] = 0.0

    def next(self, provider: Provider, token: str) -> Behaviour:
        if token in self._buried:
            return DEAD
        behaviour = self.current[provider]
        if behaviour.share >= 1:
            return behaviour
        if behaviour.mode in ("unregistered", "bad_token"):
            return behaviour if bucket("sandbox", token) < behaviour.share * 10_000 else OK
        self._owed[provider] += behaviour.share
        # A share like 0.1 is not exact in binary: ten of them fall just short of one.
        if self._owed[provider] < 1 - 1e-9:
            return OK
        self._owed[provider] -= 1
        return behaviour


class Tokens:
    """Access tokens issued by this process; the oldest go when there are too many."""

    def __init__(self, lifetime_seconds: int = 3600, capacity: int = 10_000) -> None:
        self.lifetime_seconds = lifetime_seconds
        self._capacity = capacity
        self._until: OrderedDict[str, int] = OrderedDict()

    def issue(self, token: str, real_ms: int) -> None:
        self._until[token] = real_ms + self.lifetime_seconds * 1000
        while len(self._until) > self._capacity:
            self._until.popitem(last=False)

    def good(self, authorization: str, real_ms: int) -> bool:
        scheme, _, token = authorization.partition(" ")
        return scheme.lower() == "bearer" and self._until.get(token, 0) > real_ms

    def revoke_all(self) -> None:
        self._until.clear()


def message_name(n: int, token: str) -> str:
    """An id like FCM's: unique, and not to be taken apart."""
    return f"0:{n:016d}%{hashlib.blake2b(token.encode(errors='replace'), digest_size=8).hexdigest()}"
