"""What a record read from a topic looks like to the code that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class InRecord(Protocol):
    """As the client hands it over; `timestamp` in milliseconds."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...
