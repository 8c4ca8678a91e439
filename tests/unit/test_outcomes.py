"""From where the outcomes a database does not know are read: nothing unknown may lie before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import example, given
from hypothesis import strategies as st

from services.local.outcomes import _first_unknown


class Log:
    """One partition that holds these numbers from offset `start` on; None is a hole."""

    def __init__(self, numbers: list[int | None], start: int) -> None:
        self._records = dict(enumerate(numbers, start))
        self._start = start

    async def starts(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        return {0: self._start}

    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        return {0: self._start + len(self._records)}

    async def at(self, topic: str, offsets: Mapping[int, int]) -> dict[int, Any]:
        number = self._records[offsets[0]]
        return {0: None if number is None else SimpleNamespace(value=_value(number))}


def _value(number: int) -> bytes:
    names = ("message_id", "user_id", "campaign", "reason", "provider", "occurred_at")
    value = dict.fromkeys(names, "") | {"variant": "treated", "outcome": "sent", "shard": 0, "gen": 1, "seq": number}
    return json.dumps(value).encode()


def _published(first: int, steps: list[int]) -> list[int]:
    """Numbers as the relay appends them: the next one, or after a failure again from one it had sent."""
    numbers = [first]
    for back in steps:
        numbers.append(max(first, numbers[-1] + 1 - back))
    # it does not rest before it is where it was
    return numbers + list(range(numbers[-1] + 1, max(numbers) + 1))


@given(
    first=st.integers(1, 5),
    steps=st.lists(st.sampled_from([0, 0, 0, 0, 1, 3, 8]), max_size=60),
    known=st.integers(0, 70),
    start=st.integers(0, 3),
    hole=st.booleans(),
)
@example(first=1, steps=[0] * 9 + [5] + [0] * 4, known=7, start=0, hole=False)
def test_every_unknown_number_is_still_to_come(
    first: int, steps: list[int], known: int, start: int, hole: bool
) -> None:
    numbers: list[int | None] = [*_published(first, steps)]
    if hole:
        numbers[len(numbers) // 2] = None
    found = asyncio.run(_first_unknown(cast(Any, Log(numbers, start)), "topic", {0: known}, again=0))[0]
    unknown = {n for n in numbers if n is not None and n > known}
    assert unknown <= set(numbers[found - start :])


def test_what_is_known_is_not_read_again() -> None:
    """A month of outcomes is not read for the sake of its last hour."""
    log = Log([*range(1, 1001)], 0)
    assert asyncio.run(_first_unknown(cast(Any, log), "topic", {0: 990}, again=10)) == {0: 980}


def test_a_relay_that_ended_while_it_sent_again_hides_nothing() -> None:
    log = Log([1, 2, 3, 4, 5, 6, 3, 4], 0)
    assert asyncio.run(_first_unknown(cast(Any, log), "topic", {0: 4}, again=4))[0] <= 4
