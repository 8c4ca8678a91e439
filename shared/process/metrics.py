"""Which metrics exist, what each means, and what to do when it moves. Declared once, here.

Services import theirs by name; docs/metrics.md is made from `DECLARED` and checked by a test.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Declared:
    name: str
    kind: str
    meaning: str
    action: str
    labels: tuple[str, ...]


DECLARED: list[Declared] = []


def _counter(name: str, meaning: str, action: str, *labels: str) -> Counter:
    DECLARED.append(Declared(name, "counter", meaning, action, labels))
    return Counter(name, meaning, labels)


def _gauge(name: str, meaning: str, action: str, *labels: str) -> Gauge:
    DECLARED.append(Declared(name, "gauge", meaning, action, labels))
    return Gauge(name, meaning, labels)


def _histogram(name: str, meaning: str, action: str, *labels: str) -> Histogram:
    DECLARED.append(Declared(name, "histogram", meaning, action, labels))
    return Histogram(name, meaning, labels, buckets=_FAST)


# gateway
GATEWAY_REQUESTS = _counter(
    "perennial_gateway_requests_total",
    "Answers to apps, by HTTP status.",
    "429/503: the broker is slow or away; 4xx: look for a faulty release of the app.",
    "status",
)
GATEWAY_EVENTS = _counter(
    "perennial_gateway_events_total", "Events acknowledged by the broker.", "Zero while requests arrive: broker."
)
GATEWAY_SECONDS = _histogram(
    "perennial_gateway_request_seconds", "Time from a request's arrival to its answer.", "Rising: broker latency."
)
GATEWAY_BYTES_IN_FLIGHT = _gauge(
    "perennial_gateway_in_flight_bytes", "Bytes of events waiting for the broker.", "At its bound: 429s follow."
)
# ingest
INGEST_DECISIONS = _counter(
    "perennial_ingest_decisions_total",
    "Raw records decided: accepted, rejected, moved.",
    "moved > 0: a producer uses another partitioner.",
    "verdict",
)
INGEST_REJECTIONS = _counter(
    "perennial_ingest_rejections_total", "Rejected events by reason code.", "See `perennial dlq list`.", "reason"
)
INGEST_RESUMES = _counter(
    "perennial_ingest_resumes_total",
    "Partitions resumed from their last durable decision.",
    "Steadily rising: sends to app.events.v1 fail.",
)
# segmenter and notifier: the spine
FENCED = _counter(
    "perennial_fenced_total",
    "Transactions refused because another owner holds the shard.",
    "A few at a rebalance are normal; steady: two owners fight for a shard.",
    "service",
)
OWNED_SHARDS = _gauge(
    "perennial_owned_shards", "Shards this process owns.", "Sum below SHARDS: shards orphaned.", "service"
)
REPEATS = _counter(
    "perennial_repeated_records_total", "Input records already applied.", "Normal after a restart.", "service"
)
GAPS = _counter(
    "perennial_gap_records_total",
    "Input records that cannot be applied because records before them are missing.",
    "Above zero: records were lost; run `perennial repair`.",
    "service",
)
BATCH_SECONDS = _histogram(
    "perennial_batch_seconds", "Time of one batch's transaction.", "Rising: Postgres.", "service"
)
TRANSIENT = _counter(
    "perennial_transient_failures_total",
    "Bad moments that were retried.",
    "Steady: broker or Postgres away.",
    "service",
)
BUGS = _counter(
    "perennial_bugs_total", "Batches that failed for a reason the code does not know.", "Any: read the log.", "service"
)
RELAY_PENDING = _gauge(
    "perennial_relay_pending_rows", "Committed rows not yet acknowledged by the broker.", "Growing: broker.", "service"
)
# segmenter
SEGMENTER_EVENTS = _counter(
    "perennial_segmenter_events_total", "Events folded into users: applied or duplicate.", "", "outcome"
)
SEGMENTER_CHANGES = _counter("perennial_segmenter_changes_total", "Ledger rows by kind.", "", "kind")
SEGMENTER_DUE = _counter("perennial_segmenter_due_total", "Users brought forward by the sweep.", "")
DUE_LATENESS = _histogram(
    "perennial_segmenter_due_lateness_seconds",
    "From the moment a user fell due to the commit that says so (product time).",
    "Above 5 s: the sweep lags.",
)
WATERMARK_AGE = _gauge(
    "perennial_segmenter_watermark_age_seconds",
    "Age of the oldest shard's watermark (product time).",
    "Growing: ingest is behind or down.",
)
# notifier
MESSAGES = _counter(
    "perennial_notifier_messages_total",
    "Verdicts on messages: sent, suppressed, held_out, failed, unknown.",
    "failed or unknown rising: look at the provider.",
    "outcome",
)
SEND_SECONDS = _histogram("perennial_notifier_send_seconds", "Time of one call to the provider.", "Rising: provider.")
ALERTS = _counter("perennial_notifier_alerts_total", "Weather alerts by verdict.", "", "verdict")
