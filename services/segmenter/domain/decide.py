"""What one stimulus makes of one user: the heart. Pure, total, no clock.

A stimulus is an accepted event or a tick. Each first brings its user to its own moment (`as_of`), then
acts, then brings what the act made due already. Hence `tick(a); tick(b) = tick(b)` for a <= b, and it does
not matter whether the sweep or the next event notices that a moment has passed.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import msgspec
from msgspec.structs import replace

from services.segmenter.domain import dedup, profile
from services.segmenter.domain.acting import act, may_be_told
from services.segmenter.domain.compiled import Compiled, InForce
from services.segmenter.domain.moments import moment_of
from services.segmenter.domain.passing import advance, born, settle, tick
from services.segmenter.domain.state import Change, Cold, Daily, Hot
from shared.contracts.events import Accepted
from shared.contracts.identifiers import message_hash

HOUR_MS = 3_600_000


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """The user afterwards. `cold` is None where it did not change; `daily` is what moved among the counts of days;
    `spilled` are (hash, hour) of message ids that left the ring too young; a duplicate changed nothing but time."""

    hot: Hot
    cold: Cold | None
    changes: list[Change]
    daily: list[Daily]
    spilled: tuple[int, int] | None
    duplicate: bool


def needs_cold(hot: Hot | None, event: Accepted, rules: Compiled | None) -> bool:
    """Whether `decide` will look at the cold part. Rules that are not known yet (None) may make it."""
    if rules is None or event.identifies or rules.meaning_of(event.name).orders:
        return True
    return event.context is not None and (hot is None or profile.digest(event.context) != hot.context_digest)


def decide(
    hot: Hot | None,
    cold: Cold | None,
    event: Accepted,
    as_of: int,
    rules: InForce,
    spilled: AbstractSet[int] = frozenset(),
) -> Outcome:
    """Fold one event. `as_of`: the later of its received time and the shard's last tick. `cold` may be
    None unless `needs_cold`. `spilled`: hashes of the user's ids that left the ring within a day."""
    stood: Hot | None = None
    if hot is None:
        hot, changes, daily = born(event.occurred_at, "event", event.message_id, rules.current)
    else:
        hot, changes, daily = tick(hot, as_of, rules)
        stood = hot
    number = message_hash(event.message_id)
    if dedup.contains(hot.ring, number) or number in spilled:
        return Outcome(hot, None, changes, daily, None, duplicate=True)
    hot = replace(hot)
    hot.ring, evicted = dedup.add(hot.ring, number, event.received_at // HOUR_MS)
    if evicted is not None:
        hot.spilled_hour = max(hot.spilled_hour, evicted[1])
    meaning = rules.current.meaning_of(event.name)
    changed_cold = act(hot, cold, event, meaning, as_of, rules, changes, daily)
    settle(hot, event.occurred_at, as_of, "event", event.message_id, rules.current, changes, daily, stood)
    advance(hot, as_of, as_of, rules.current, changes, daily)
    # the last row of its event: who waits for it finds the user as the event left them
    if meaning.awaited is not None and may_be_told(hot, event, meaning, rules.current):
        changes.extend(moment_of(event, meaning.awaited))
    return Outcome(hot, changed_cold, changes, daily, evicted, duplicate=False)
