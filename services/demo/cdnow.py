"""A real shop's history: the CDNOW sample, line by line, as orders for `/v1/import`.

Pure: the present is an argument. Ids are made of line numbers, so that a second import counts nothing twice.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import Any, NamedTuple

from services.demo.habits import DAY_MS, Post
from shared.process.clock import iso

SAMPLE = "feeds/cdnow-sample.txt.gz"
PER_POST = 200
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Purchase(NamedTuple):
    """Line `number` (from 1) of the sample. `day`: days since 1970; `dollars` as written, such as 29.33."""

    number: int
    customer: str
    day: int
    dollars: str

    @property
    def user_id(self) -> str:
        return f"cdnow-{self.customer}"


@cache
def purchases() -> tuple[Purchase, ...]:
    """The sample in its own order: by customer, then by day."""
    text = gzip.decompress(files("services.demo").joinpath(SAMPLE).read_bytes()).decode("ascii")
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        _, customer, day, _, dollars = line.split()
        at = datetime(int(day[:4]), int(day[4:6]), int(day[6:]), tzinfo=UTC)
        found.append(Purchase(number, customer, (at - _EPOCH).days, dollars))
    return tuple(found)


def order(purchase: Purchase, at_ms: int) -> dict[str, Any]:
    """The purchase as the event of a shop."""
    return {
        "type": "track",
        "event": "Order Completed",
        "userId": purchase.user_id,
        "messageId": f"cdnow-{purchase.number}",
        "timestamp": iso(at_ms),
        "properties": {
            "order_id": f"cdnow-{purchase.number}",
            "revenue": float(purchase.dollars),
            "currency": "USD",
            "channel": "online",
        },
    }


def history(now_ms: int) -> Iterator[Post]:
    """The whole sample, moved so that its last day lies half a day back: no order's age is near a whole day, so that
    what becomes of the customers does not depend on the hour. No customer is divided between two posts."""
    last = max(purchase.day for purchase in purchases())
    batch: list[dict[str, Any]] = []
    for _, several in groupby(purchases(), key=lambda purchase: purchase.customer):
        batch += [order(p, now_ms - (last - p.day) * DAY_MS - DAY_MS // 2) for p in several]
        if len(batch) >= PER_POST:
            yield Post("/v1/import", {"batch": batch})
            batch = []
    if batch:
        yield Post("/v1/import", {"batch": batch})
