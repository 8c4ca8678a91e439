"""Which cohorts a user is in after searching, adding and removing cities, and how many at most."""

from __future__ import annotations

from services.segmenter.domain import cohorts
from services.segmenter.domain.cohorts import Move
from services.segmenter.domain.state import MAX_CITIES, Hot


def _hot() -> Hot:
    return Hot("reach", 0, "new", 0, 0, 0)


def test_another_default_city_leaves_the_first() -> None:
    hot = _hot()
    assert cohorts.set_default(hot, 1) == [Move(True, "default", 1)]
    assert cohorts.set_default(hot, 1) == []
    assert cohorts.set_default(hot, 2) == [Move(False, "default", 1), Move(True, "default", 2)]


def test_a_search_is_counted_and_its_latest_moment_kept() -> None:
    hot = _hot()
    assert cohorts.search(hot, 1, 50, 60, 100) == [Move(True, "searched", 1)]
    assert cohorts.search(hot, 1, 40, 60, 100) == []
    assert [(v.count, v.last_at) for v in hot.searched] == [(2, 50)]


def test_a_search_that_would_be_forgotten_already_opens_nothing() -> None:
    hot = _hot()
    assert cohorts.search(hot, 1, 0, 100, 100) == []
    assert cohorts.search(hot, 1, 1, 100, 100) == [Move(True, "searched", 1)]


def test_the_ninth_city_pushes_out_the_oldest() -> None:
    hot = _hot()
    for city in range(1, MAX_CITIES + 1):
        cohorts.add(hot, city, 1000 - city)
    assert cohorts.add(hot, 99, 5000) == [Move(False, "added", MAX_CITIES), Move(True, "added", 99)]
    assert len(hot.added) == MAX_CITIES


def test_what_was_never_added_cannot_be_removed() -> None:
    hot = _hot()
    assert cohorts.remove(hot, 1) == []
    cohorts.add(hot, 1, 5)
    assert cohorts.remove(hot, 1) == [Move(False, "added", 1)]
    assert cohorts.remove(hot, 1) == []


def test_searches_end_together_only_where_they_are_equally_old() -> None:
    hot = _hot()
    for city, at in ((1, 10), (2, 10), (3, 20)):
        cohorts.search(hot, city, at, 20, 100)
    assert cohorts.next_expiry(hot, 100) == 110
    assert cohorts.expire(hot, 110, 100) == [Move(False, "searched", 1), Move(False, "searched", 2)]
    assert cohorts.next_expiry(hot, 100) == 120


def test_forgetting_all_leaves_every_relation() -> None:
    hot = _hot()
    cohorts.set_default(hot, 1)
    cohorts.add(hot, 2, 5)
    cohorts.search(hot, 3, 5, 5, 100)
    assert {(m.relation, m.city_id, m.entered) for m in cohorts.forget_all(hot)} == {
        ("default", 1, False), ("added", 2, False), ("searched", 3, False),
    }  # fmt: skip
    assert (hot.default_city, hot.added, hot.searched) == (0, (), ())
