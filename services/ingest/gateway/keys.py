"""Whose write key this is, and how much it may post. Here keys are only known by their hash."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Mapping

import msgspec

from services.ingest.domain.allowance import Allowance
from services.ingest.domain.intake_http import Refused
from shared.data.keys import key_hash
from shared.process.clock import monotonic
from shared.process.metrics import GATEWAY_LIMITED, begin_each

_REMEMBER = 1024
_LONGEST_WAIT_SECONDS = 300


class KeyFacts(msgspec.Struct, frozen=True):
    """What is known of a write key; `events_per_second` None: as much as it likes."""

    source: str
    events_per_second: int | None = None


class WriteKey:
    """A key in force. `events` (acknowledged) and `refused` (requests) count since they were last fetched."""

    __slots__ = ("_allowance", "_throttle", "events", "facts", "limited", "refused", "source")

    def __init__(self, facts: KeyFacts) -> None:
        self.facts, self.source = facts, facts.source
        self.events = self.refused = 0
        self._allowance = Allowance(facts.events_per_second, monotonic()) if facts.events_per_second else None
        self._throttle: Allowance | None = None
        self.limited = self._allowance is not None
        """Whether `over` has anything to say."""

    def throttle(self, per_second: float | None) -> None:
        """Let so many events through, for most of what came was rejected; None: as many as the key may."""
        if per_second is None:
            self._throttle = None
        elif self._throttle is None:
            self._throttle = Allowance(per_second, monotonic())
        self.limited = self._allowance is not None or self._throttle is not None

    def over(self, count: int) -> Refused | None:
        """Why `count` events more are too many now, or None, and they are counted."""
        now = monotonic()
        if self._throttle is not None and (seconds := self._throttle.take(count, now)):
            GATEWAY_LIMITED.labels("rejects").inc()
            told = "most events of this key are rejected, so few are taken; see `perennial dlq stats`"
            return Refused(429, "too_many_rejects", told, _whole(seconds))
        if self._allowance is not None and (seconds := self._allowance.take(count, now)):
            GATEWAY_LIMITED.labels("rate").inc()
            told = f"this key may post {self._allowance.per_second} events a second here; send these again later"
            return Refused(429, "rate_limited", told, _whole(seconds))
        return None


class KeyBook:
    """The write keys in force. `known` is False until they were read from anywhere: until then nobody may be told
    that theirs is wrong."""

    def __init__(self, facts: Mapping[str, KeyFacts] | None = None) -> None:
        self.known = facts is not None
        self._keys: dict[str, WriteKey] = {sha: WriteKey(about) for sha, about in (facts or {}).items()}
        self._recent: dict[bytes, WriteKey] = {}
        begin_each(GATEWAY_LIMITED, ("rate", "rejects"))

    @classmethod
    def of(cls, **keys: str) -> KeyBook:
        """A book of plain keys by source name."""
        return cls({key_hash(key): KeyFacts(source) for source, key in keys.items()})

    def replace(self, facts: Mapping[str, KeyFacts]) -> bool:
        """The keys now in force, by sha256; whether that is news. What stayed as it was goes on counting."""
        if self.known and facts == self.facts():
            return False
        before = self._keys
        self._keys = {
            sha: kept if (kept := before.get(sha)) is not None and kept.facts == about else WriteKey(about)
            for sha, about in facts.items()
        }
        self.known, self._recent = True, {}
        return True

    def facts(self) -> dict[str, KeyFacts]:
        return {sha: key.facts for sha, key in self._keys.items()}

    def throttle(self, sources: Iterable[str], per_second: float) -> None:
        """These sources' keys, and no others, are held back."""
        held_back = set(sources)
        for key in self._keys.values():
            key.throttle(per_second if key.source in held_back else None)

    def used(self) -> dict[str, tuple[int, int]]:
        """Events and refused requests of each key since this was last asked; keys that were not used are left out."""
        found: dict[str, tuple[int, int]] = {}
        for sha, key in self._keys.items():
            if key.events or key.refused:
                found[sha] = key.events, key.refused
                key.events = key.refused = 0
        return found

    def by_key(self, key: str) -> WriteKey | None:
        return self._keys.get(key_hash(key))

    def by_header(self, authorization: bytes) -> WriteKey | None:
        """The key in an Authorization header, `Basic base64(key:)` or `Bearer key`, where it is in force."""
        found = self._recent.get(authorization)
        if found is None:
            key = key_in_header(authorization)
            found = self.by_key(key) if key else None
            if found is not None and len(self._recent) < _REMEMBER:
                self._recent[authorization] = found
        return found


def key_in_header(authorization: bytes) -> str:
    """The write key in an Authorization header; empty where there is none."""
    scheme, _, rest = authorization.strip().partition(b" ")
    rest = rest.strip()
    match scheme.lower():
        case b"basic":
            try:
                plain = base64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True)
            except (binascii.Error, ValueError):
                return ""
            return plain.partition(b":")[0].decode("utf-8", "replace")
        case b"bearer":
            return rest.decode("utf-8", "replace")
    return ""


def _whole(seconds: float) -> int:
    return min(_LONGEST_WAIT_SECONDS, math.ceil(seconds))
