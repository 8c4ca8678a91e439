"""Which cohorts a user is in after searching, adding and removing cities, and how many at most."""

from __future__ import annotations

from services.segmenter.domain import cohorts
from services.segmenter.domain.cohorts import Move
from services.segmenter.domain.state import Hot
from services.segmenter.domain.visited import MAX_CITIES, MOST_COUNTED, Visit, packed, visits


def _hot() -> Hot:
    return Hot("reach", 0, "new", 0, 0, 0)


def test_another_default_city_leaves_the_first() -> None:
    hot = _hot()
    assert cohorts.set_default(hot, 1) == [Move(True, "default", 1)]
    assert cohorts.set_default(hot, 1) == []
    assert cohorts.set_default(hot, 2) == [Move(False, "default", 1), Move(True, "default", 2)]


def test_a_search_is_counted_and_its_latest_moment_kept() -> None:
    hot = _hot()
    assert cohorts.search(hot, 1, 50_000, 60_000, 100_000) == [Move(True, "searched", 1)]
    assert cohorts.search(hot, 1, 40_000, 60_000, 100_000) == []
    assert [(v.count, v.last_at) for v in visits(hot.searched)] == [(2, 50_000)]


def test_a_search_that_would_be_forgotten_already_opens_nothing() -> None:
    hot = _hot()
    assert cohorts.search(hot, 1, 0, 100_000, 100_000) == []
    assert cohorts.search(hot, 1, 1000, 100_000, 100_000) == [Move(True, "searched", 1)]


def test_a_visit_counts_from_the_beginning_of_its_second() -> None:
    """What is kept decides, not what came: a search is refused, kept and forgotten by the same second."""
    hot = _hot()
    assert cohorts.search(hot, 1, 999, 100_000, 100_000) == []
    assert cohorts.search(hot, 1, 1999, 100_000, 100_000) == [Move(True, "searched", 1)]
    assert cohorts.next_expiry(hot, 100_000) == 101_000


def test_a_city_visited_more_often_than_can_be_counted_stays_at_the_most() -> None:
    hot = _hot()
    hot.added = packed([Visit(1, MOST_COUNTED, 0)])
    cohorts.add(hot, 1, 5000)
    assert visits(hot.added) == [Visit(1, MOST_COUNTED, 5000)]


def test_the_ninth_city_pushes_out_the_oldest() -> None:
    hot = _hot()
    for city in range(1, MAX_CITIES + 1):
        cohorts.add(hot, city, 1000 * (100 - city))
    assert cohorts.add(hot, 99, 500_000) == [Move(False, "added", MAX_CITIES), Move(True, "added", 99)]
    assert len(visits(hot.added)) == MAX_CITIES


def test_what_was_never_added_cannot_be_removed() -> None:
    hot = _hot()
    assert cohorts.remove(hot, 1) == []
    cohorts.add(hot, 1, 5)
    assert cohorts.remove(hot, 1) == [Move(False, "added", 1)]
    assert cohorts.remove(hot, 1) == []


def test_searches_end_together_only_where_they_are_equally_old() -> None:
    hot = _hot()
    for city, at in ((1, 10_000), (2, 10_000), (3, 20_000)):
        cohorts.search(hot, city, at, 20_000, 100_000)
    assert cohorts.next_expiry(hot, 100_000) == 110_000
    assert cohorts.expire(hot, 110_000, 100_000) == [Move(False, "searched", 1), Move(False, "searched", 2)]
    assert cohorts.next_expiry(hot, 100_000) == 120_000


def test_forgetting_all_leaves_every_relation() -> None:
    hot = _hot()
    cohorts.set_default(hot, 1)
    cohorts.add(hot, 2, 5)
    cohorts.search(hot, 3, 5, 5, 100)
    assert {(m.relation, m.city_id, m.entered) for m in cohorts.forget_all(hot)} == {
        ("default", 1, False), ("added", 2, False), ("searched", 3, False),
    }  # fmt: skip
    assert (hot.default_city, hot.added, hot.searched) == (0, b"", b"")
