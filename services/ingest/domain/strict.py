"""Which events of a request ingest will reject whatever the rules say: what `?strict=1` tells a developer at once.

It covers what the bytes alone show: size, JSON and UTF-8, types of fields, ids, kind of call, event name, readable
times, devices. It does not cover what rules and gazetteer decide: age, cities, types of properties, personal data.
"""

from __future__ import annotations

from typing import NamedTuple

from services.ingest.domain.intake import Intake, RawRecord, Refused
from services.ingest.domain.intake_http import Event
from shared.contracts import rules


class Reject(NamedTuple):
    """`place`: which event of the request it is, from 0; `message_id` is None where it names none."""

    place: int
    message_id: str | None
    reason: str


class _Nowhere:
    """The gazetteer of rules that know no event with a city."""

    def normalise(self, city: str, state: str | None = None, country: str | None = None) -> None:
        return None

    def nearest(self, lat: float, lon: float) -> None:
        return None


_ANY_AGE_DAYS = 1_000_000
_OPEN = rules.Rules(
    pack="",
    title="",
    signals={},
    stages=[],
    rates=rules.Rates({}, {}, {}),
    privacy=rules.Privacy(pii_less=False),
    intake=rules.Intake(too_old_days=_ANY_AGE_DAYS, future_days=_ANY_AGE_DAYS),
)
_judge = Intake(_OPEN, _Nowhere(), shards=1).judge


def rejects(events: list[Event], received_at: int) -> list[Reject]:
    """The events that will end as dead letters, each with the reason it will have there."""
    found = []
    for index, (user_id, kind, message_id, sent_at, value) in enumerate(events):
        headers = {"type": kind.encode(), "sent_at": sent_at, "message_id": (message_id or "").encode()}
        verdict = _judge(RawRecord(0, index, (user_id or "").encode(), value, headers, received_at))
        if isinstance(verdict, Refused):
            found.append(Reject(index, message_id, verdict.reason))
    return found
