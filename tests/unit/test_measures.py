"""What a measure is read from is all that it depends on."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from services.segmenter.domain.measures import bounds, reached, seen_by
from services.segmenter.domain.state import Hot, Shop
from services.segmenter.domain.visited import appended
from shared.contracts.rules import Measure
from tests.support.people import BOSTON, CHICAGO, NEW_YORK, T0

_VISITED = appended(appended(b"", BOSTON, T0), CHICAGO, T0)


def _lives() -> list[Hot]:
    """A user, and the same one with one thing changed, for each that can be."""
    shop = Shop(viewed_at=(1,), **{n: 7 for n in Shop.__struct_fields__ if n != "viewed_at"})
    hot = Hot("reach", 1, "new", 1, 1, 1, searched=_VISITED, orders=3, revenue=900, shop=shop)
    lives = [hot]
    for name in Hot.__struct_fields__:
        value = getattr(hot, name)
        if isinstance(value, int):
            lives.append(msgspec.structs.replace(hot, **{name: value + 300}))
        elif isinstance(value, bytes):
            lives.append(msgspec.structs.replace(hot, **{name: appended(value, NEW_YORK, T0)}))
    for name in Shop.__struct_fields__:
        if name != "viewed_at":
            changed = msgspec.structs.replace(shop, **{name: getattr(shop, name) + 1})
            lives.append(msgspec.structs.replace(hot, shop=changed))
    return [*lives, msgspec.structs.replace(hot, shop=None)]


@pytest.mark.parametrize("name", get_args(Measure))
def test_who_looks_the_same_to_a_measure_has_the_same(name: Measure) -> None:
    """A field left out would leave a user in a role or a segment whose threshold they have just passed."""
    first, *others = _lives()
    ((read, _),) = bounds({name: 0})
    see, changes = seen_by(name), 0
    for other in others:
        if read(other) != read(first):
            changes += 1
            assert see(other) != see(first)
    assert changes


def test_a_threshold_is_reached_and_a_user_who_never_shopped_reaches_none_of_a_shop() -> None:
    hot = Hot("reach", 1, "new", 1, 1, 1, opens=2, default_city=NEW_YORK, searched=_VISITED)
    assert reached(hot, bounds({"opens": 2, "cities": 3, "searched": 2, "score": -1, "average_order": 0}))
    assert not reached(hot, bounds({"opens": 2, "cities": 4}))
    assert not reached(hot, bounds({"views": 1}))
    assert reached(hot, bounds({}))
