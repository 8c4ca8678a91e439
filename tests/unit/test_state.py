"""Whether a user's row says again what was put into it, also a row of the first form; and which rows are refused."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest

from services.segmenter.domain import dedup
from services.segmenter.domain.state import (
    PURPOSES,
    Hot,
    consent,
    consenting,
    decode_hot,
    encode_hot,
    told_consents,
)
from services.segmenter.domain.visited import MAX_CITIES, Visit, city_of, find, oldest, oldest_at, packed, visits
from tests.support.people import HOUR, T0

NOW_HOUR = T0 // HOUR
EDGE = (NOW_HOUR // 65_536 + 1) * 65_536
SAID: tuple[bool | None, ...] = (None, False, True)


@pytest.mark.parametrize("said", list(product(SAID, repeat=len(PURPOSES))))
def test_every_set_of_consents_is_kept_apart(said: tuple[bool | None, ...]) -> None:
    """Silence is neither yes nor no: a pack decides what it means."""
    consents = 0
    for purpose, given in zip(PURPOSES, said, strict=True):
        if given is not None:
            consents = consenting(consenting(consents, purpose, not given), purpose, given)
    assert tuple(consent(consents, purpose) for purpose in PURPOSES) == said
    assert told_consents(consents) == {p: g for p, g in zip(PURPOSES, said, strict=True) if g is not None}


def test_visits_come_back_in_their_order() -> None:
    several = [Visit(2**31 - 1 - n, n * 9000, T0 + (n % 3) * 1000) for n in range(MAX_CITIES)]
    assert visits(packed(several)) == several
    assert oldest_at(packed(several)) == T0
    assert city_of(packed(several), oldest(packed(several))) == 2**31 - 7
    assert [find(packed(several), v.city_id) for v in several] == [10 * n for n in range(MAX_CITIES)]
    assert visits(b"") == []


def _first_form(hours: list[int], seen: int = T0) -> bytes:
    """A row as the first version wrote it, its ids 0, 1, 2… received in these hours, the user seen last at `seen`."""
    ring = b"".join(n.to_bytes(6, "big") + (hour % 65_536).to_bytes(2, "big") for n, hour in enumerate(hours))
    return msgspec.msgpack.encode(
        [
            "retain", T0, "active", T0, T0, seen, T0, T0 + 5, T0, T0 + 5, 1, 2, 3, 4, 5, 20454, 1, 6, 17,
            [[4684888, 70_000, T0 + 1999]], [[5128581, 1, T0], [4887398, 2, T0 + 7]], ["active_30d"],
            {"push": False, "location": True}, 3, 0, 0, 0, T0 + 14 * 24 * HOUR, 4, ring, 0, b"c" * 8, "ads", "", "",
        ]
    )  # fmt: skip


def test_a_row_of_the_first_form_becomes_one_of_the_second() -> None:
    hot = decode_hot(_first_form([T0 // HOUR]))
    assert visits(hot.searched) == [Visit(4684888, 65_535, T0 + 1000)]
    assert visits(hot.added) == [Visit(5128581, 1, T0), Visit(4887398, 2, T0)]
    assert told_consents(hot.consents) == {"push": False, "location": True}
    assert (hot.stage, hot.due_at, hot.segments, hot.first_channel) == (
        "retain", T0 + 14 * 24 * HOUR, ("active_30d",), "ads",
    )  # fmt: skip
    assert decode_hot(encode_hot(hot)) == hot


@pytest.mark.parametrize(
    ("seen", "newest"),
    [(NOW_HOUR, NOW_HOUR), (NOW_HOUR, NOW_HOUR + 700), (EDGE - 1, EDGE + 3), (EDGE - 9, EDGE - 9), (EDGE, EDGE + 40)],
)
def test_a_full_ring_of_the_first_form_keeps_its_promise(seen: int, newest: int) -> None:
    """Received up to a month after it happened, and wherever the old hours wrapped: the next id sees the same ages."""
    hours = [newest - 15 + n // 2 for n in range(dedup.SLOTS)]
    ring = decode_hot(_first_form(hours, seen * HOUR)).ring
    assert all(dedup.contains(ring, number) for number in range(dedup.SLOTS))
    assert dedup.add(ring, 99, hours[0] + 24)[1] == (0, hours[0])
    assert dedup.add(ring, 99, hours[0] + 25)[1] is None


@pytest.mark.parametrize(
    "row", [b"", b"\x80", b"\x90", b"\x93\x03\x01\x02", encode_hot(Hot("a", 0, "b", 0, 0, 0))[:-1]]
)
def test_any_other_row_is_refused(row: bytes) -> None:
    """Guessing at a row would make up a user: one of a later version stops this one."""
    with pytest.raises(msgspec.DecodeError):
        decode_hot(row)
