"""Which of the three failures this is: bad moments are `Transient`, refusals to go on are `Fatal`.

Bad data is a value, never an exception; any other exception is a bug.
"""

from __future__ import annotations


class Transient(Exception):
    """A broker, database or provider is away for the moment; the same work may succeed later."""


class Fatal(Exception):
    """Going on would lose or double something. The process stops and says why."""


class Fenced(Transient):
    """Another owner has taken these shards; nothing of this transaction was written."""

    def __init__(self, shards: list[int]) -> None:
        super().__init__(f"another owner holds shards {shards}")
        self.shards = shards


class LogReplaced(Fatal):
    """The log is not the one the position was taken from: re-created, truncated or restored."""
