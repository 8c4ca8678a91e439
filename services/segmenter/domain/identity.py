"""Which user is part of which other one: who may be absorbed by whom.

An id is *known* from the first event on that identifies it (see `Accepted.identifies`), *merged* from the moment on
at which it became part of a known one, and *anonymous* otherwise. Known and merged are for good. So nothing is ever
merged twice, a merged user always leads to a known one, and there are neither chains nor circles.

| `by` wants to absorb `user` | becomes |
|---|---|
| who is `by`, or was asked for already | nothing |
| who is anonymous, or was never seen | merged into `by` |
| who is merged into `by` | nothing: it was answered |
| who is merged into another | refused: `elsewhere`; the first one keeps them |
| who is known, be it by wanting to absorb `by` | refused: `known` |
| who was erased | refused: `suppressed`, and not remembered |
| while `by` has claimed 500 ids | refused: `too_many` |
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Literal

from msgspec.structs import replace

from services.segmenter.domain import dedup
from services.segmenter.domain.state import ABSORBED, ASKED, HOUR_MS, REFUSED, Claim, Cold, Hot
from shared.contracts.events import Accepted
from shared.contracts.identifiers import message_hash

Refused = Literal["known", "elsewhere", "too_many", "suppressed"]
MAX_CLAIMS = 500


def identified(hot: Hot) -> Hot:
    """The user once an event identified them; the same object if one did before."""
    if hot.known:
        return hot
    hot = replace(hot)
    hot.known = True
    return hot


def claim(cold: Cold, user_id: str, other: str) -> Cold | Refused | None:
    """The cold part once `user_id` was said to be `other` as well; None if there is nothing to ask for."""
    if other in ("", user_id) or outcome_of(cold, other) is not None:
        return None
    if len(cold.claims) >= MAX_CLAIMS:
        return "too_many"
    return replace(cold, claims=(*cold.claims, Claim(other, ASKED)))


def outcome_of(cold: Cold, other: str) -> int | None:
    """What became of the claim to `other`; None if there was none."""
    return next((one.outcome for one in cold.claims if one.user_id in (other, _veiled(other))), None)


def settled(cold: Cold, other: str, outcome: int) -> Cold:
    """The cold part once the claim to `other` has this outcome. Of an id that is somebody else's a hash is kept."""
    rest = withdrawn(cold, other).claims
    return replace(cold, claims=(*rest, Claim(_veiled(other) if outcome == REFUSED else other, outcome)))


def withdrawn(cold: Cold, other: str) -> Cold:
    """The cold part without the claim to `other`."""
    return replace(cold, claims=tuple(one for one in cold.claims if one.user_id not in (other, _veiled(other))))


def claimed(cold: Cold) -> list[str]:
    """The ids that are the user's, or may be."""
    return [one.user_id for one in cold.claims if one.outcome != REFUSED]


def same(hot: Hot, cold: Cold, other: str) -> bool:
    """Whether `other` is another id of the user: the one they are part of, or one that is part of them."""
    return hot.merged_into == other if hot.merged_into else outcome_of(cold, other) == ABSORBED


def _veiled(user_id: str) -> str:
    return f"{message_hash(user_id):012x}"


def judge(hot: Hot | None, by: str, *, suppressed: bool = False) -> Literal["merge", "answered"] | Refused:
    """What becomes of the user when `by` wants to absorb them."""
    if hot is None:
        return "suppressed" if suppressed else "merge"
    if hot.merged_into:
        return "answered" if hot.merged_into == by else "elsewhere"
    return "known" if hot.known else "merge"


def passed_on(hot: Hot, event: Accepted, spilled: AbstractSet[int]) -> tuple[Hot | None, tuple[int, int] | None]:
    """A merged user once an event of theirs was passed on, and the (hash, hour) of a message id that left the ring too
    young; None for a duplicate. The ids an id was posted under are remembered where it was posted."""
    number = message_hash(event.message_id)
    if dedup.contains(hot.ring, number) or number in spilled:
        return None, None
    hot = replace(hot)
    hot.ring, evicted = dedup.add(hot.ring, number, event.received_at // HOUR_MS)
    if evicted is not None:
        hot.spilled_hour = max(hot.spilled_hour, evicted[1])
    return hot, evicted
