"""The headers of a CloudEvents 1.0 record in Kafka's binary mode.

Source: CloudEvents Kafka Protocol Binding 1.0.2, §3.2.
"""

from __future__ import annotations


def headers(*, event_id: str, source: str, kind: str, time: str, subject: str) -> list[tuple[str, bytes]]:
    """Header list for a JSON value; the record's key carries the partition key, here the subject.

    Optional attributes must not be empty: a record about nobody has no subject.
    """
    about = [("ce_subject", subject.encode()), ("ce_partitionkey", subject.encode())] if subject else []
    return [
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_source", source.encode()),
        ("ce_type", kind.encode()),
        ("ce_time", time.encode()),
        *about,
    ]
