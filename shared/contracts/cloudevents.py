"""The headers of a CloudEvents 1.0 record in Kafka's binary mode.

Source: CloudEvents Kafka Protocol Binding 1.0.2, §3.2.
"""

from __future__ import annotations

from functools import lru_cache

_SAME = [("content-type", b"application/json"), ("ce_specversion", b"1.0")]


def headers(*, event_id: str, source: str, kind: str, time: str, subject: str) -> list[tuple[str, bytes]]:
    """Header list for a JSON value; the record's key carries the partition key, here the subject.

    Optional attributes must not be empty: a record about nobody has no subject.
    """
    who = subject.encode()
    whose = [("ce_subject", who), ("ce_partitionkey", who)] if who else []
    return [*_shared(source, kind, time), ("ce_id", event_id.encode()), *whose]


@lru_cache(4096)
def _shared(source: str, kind: str, time: str) -> tuple[tuple[str, bytes], ...]:
    """Many records share their source and kind, those of one batch their time."""
    return *_SAME, ("ce_source", source.encode()), ("ce_type", kind.encode()), ("ce_time", time.encode())
