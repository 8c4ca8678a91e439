"""Which pushes belong to the moment at which the oracle read the database?"""

from __future__ import annotations

from typing import Any

from shared.process.clock import iso
from tests.support.oracle_snapshot import _of_then

READ_AT = 1_800_000_000_000


def push(message_id: str, after_ms: int) -> dict[str, Any]:
    return {"data": {"message_id": message_id}, "received_at": iso(READ_AT + after_ms)}


def test_what_went_out_after_the_database_was_read_is_left_aside_and_nothing_else() -> None:
    """A push that arrived before its attempt was committed stays, for that is what the oracle looks for."""
    messages = [{"message_id": "sent", "attempts": 1}, {"message_id": "waiting", "attempts": 0}]
    later = [push("sent", 5), push("waiting", 5), push("planned-since", 5)]
    before = [push("waiting", -5), push("unknown", -5)]
    assert _of_then([*before, *later], messages, READ_AT) == [*before, push("sent", 5)]
