"""The promise of the ring: exact for the last 32 ids, and for everything within 24 hours."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.segmenter.domain.dedup import KEEP_HOURS, SLOTS, add, contains, needs_spill
from shared.contracts.identifiers import message_hash
from tests.support.people import HOUR, T0, Person, event

HASHES = st.integers(0, 2**48 - 1)
HOUR_NOW = T0 // HOUR


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(HASHES, unique=True, min_size=1, max_size=90), HASHES)
def test_the_last_32_are_known_and_no_others(hashes: list[int], other: int) -> None:
    """No others: an id found across the border of two entries would swallow an event."""
    ring = b""
    for number in hashes:
        ring, _ = add(ring, number, HOUR_NOW)
    known = set(hashes[-SLOTS:])
    assert all(contains(ring, number) for number in known)
    for number in {*hashes, other} - known:
        assert not contains(ring, number)


def test_an_id_that_lies_across_two_entries_is_not_found() -> None:
    ring, _ = add(b"", 0x0102_0304_0506, 0x0708)
    ring, _ = add(ring, 0x090A_0B0C_0D0E, 0x0F10)
    assert not contains(ring, 0x0304_0506_0708)
    assert contains(ring, 0x090A_0B0C_0D0E)


def _leaving(first_hour: int, last_hour: int) -> tuple[int, int] | None:
    ring, _ = add(b"", 7, first_hour)
    for number in range(SLOTS - 1):
        ring, _ = add(ring, 100 + number, first_hour)
    ring, evicted = add(ring, 999, last_hour)
    return evicted


def test_only_the_young_are_spilled() -> None:
    assert _leaving(HOUR_NOW, HOUR_NOW) == (7, HOUR_NOW)
    assert _leaving(HOUR_NOW, HOUR_NOW + 24) == (7, HOUR_NOW)
    assert _leaving(HOUR_NOW, HOUR_NOW + 25) is None


def test_the_hour_may_go_back() -> None:
    """An upload processed again under an older time is on the safe side: what leaves for it counts as young."""
    assert _leaving(HOUR_NOW, HOUR_NOW - 3) == (7, HOUR_NOW)
    assert _leaving(HOUR_NOW, HOUR_NOW - 1000) == (7, HOUR_NOW)
    assert _leaving(-1, -1) == (7, 0)


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.sampled_from([0, 0, 1, 7, 23, 24, 25, 26, 254, 255, 256, 100_000]), min_size=33, max_size=80))
def test_what_leaves_is_spilled_under_its_own_hour_exactly_while_it_is_young(gaps: list[int]) -> None:
    """The ring keeps gaps of one byte: an hour that came out wrong would drop an id a day too early, or never."""
    ring, hour, told = b"", HOUR_NOW, []
    for number, gap in enumerate(gaps):
        hour += gap
        ring, evicted = add(ring, number, hour)
        told.append((number, hour))
        leaving = told[-SLOTS - 1] if len(told) > SLOTS else None
        young = leaving is not None and hour - leaving[1] < KEEP_HOURS
        assert evicted == (leaving if young else None)


def test_spilled_ids_are_asked_for_while_they_may_count() -> None:
    assert not needs_spill(0, HOUR_NOW)
    assert needs_spill(HOUR_NOW, HOUR_NOW)
    assert needs_spill(HOUR_NOW, HOUR_NOW + 24)
    assert not needs_spill(HOUR_NOW, HOUR_NOW + 25)


def test_two_hundred_events_of_one_hour_are_all_remembered() -> None:
    """A phone that posts a long batch twice counts once: what the ring lost is in the spill."""
    person = Person()
    once = [event("Screen Viewed", T0 + n, message_id=f"m{n}") for n in range(200)]
    person.all(once)
    assert person.state.screens == 200
    assert person.spilled == {message_hash(f"m{n}") for n in range(200 - SLOTS)}
    person.all(once)
    assert person.state.screens == 200
