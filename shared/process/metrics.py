"""Which metrics exist, what each means, and what to do when it moves. Declared once, here.

Services import theirs by name; docs/metrics.md is made from `DECLARED` and checked by a test.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Metric
from prometheus_client.registry import Collector

_SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Declared:
    name: str
    kind: str
    meaning: str
    action: str
    labels: tuple[str, ...]


DECLARED: list[Declared] = []
SERVICES = ("gateway", "ingest", "segmenter", "notifier", "archive")
"""Whose name is the second word of a metric's name is the only one that counts it."""


def _counter(name: str, meaning: str, action: str, *labels: str) -> Counter:
    DECLARED.append(Declared(name, "counter", meaning, action, labels))
    return Counter(name, meaning, labels)


def _gauge(name: str, meaning: str, action: str, *labels: str) -> Gauge:
    DECLARED.append(Declared(name, "gauge", meaning, action, labels))
    return Gauge(name, meaning, labels)


def _histogram(name: str, meaning: str, action: str, *labels: str, buckets: tuple[float, ...] = _FAST) -> Histogram:
    DECLARED.append(Declared(name, "histogram", meaning, action, labels))
    return Histogram(name, meaning, labels, buckets=buckets)


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
GATEWAY_BYTES_BOUND = _gauge(
    "perennial_gateway_in_flight_bound_bytes",
    "Bytes the gateway holds at most before it answers 429.",
    "A setting: PERENNIAL_GATEWAY_IN_FLIGHT_BYTES.",
)
GATEWAY_BROKER_AWAY = _gauge(
    "perennial_gateway_broker_away", "1 while the broker cannot be written to, else 0.", "1: posts are answered 503."
)
GATEWAY_LIMITED = _counter(
    "perennial_gateway_limited_total",
    "Requests answered 429 for their key: above its rate, or most of its events are rejected (rejects).",
    "rate: raise the key's limit, or look at the app. rejects: `perennial dlq stats`.",
    "reason",
)
GATEWAY_THROTTLED = _gauge(
    "perennial_gateway_throttled_sources",
    "Sources whose keys are throttled, since most of their events are rejected.",
    "Above zero: `perennial dlq stats` says which, and why.",
)
# ingest
INGEST_DECISIONS = _counter(
    "perennial_ingest_decisions_total",
    "Raw records decided: accepted, rejected, moved; erase and readmit are requests about a user.",
    "moved > 0: a producer uses another partitioner.",
    "verdict",
)
INGEST_REJECTIONS = _counter(
    "perennial_ingest_rejections_total", "Rejected events by reason code.", "See `perennial dlq list`.", "reason"
)
INGEST_VIOLATIONS = _counter(
    "perennial_ingest_plan_violations_total",
    "Violations of the pack's tracking plan: by planned event (empty: an unplanned one), what became of it (drop,"
    " reject, flag) and the keyword of JSON Schema that does not hold.",
    "Rising for one event: a release of the app, or the plan is wrong; `perennial plan check` says where.",
    "event",
    "action",
    "keyword",
)
INGEST_REPLAYS = _counter(
    "perennial_ingest_replays_total",
    "Dead letters replayed: sent (into raw again), refused_still (by the rules in force), gone (their bytes).",
    "gone: what is older than raw's retention cannot be replayed.",
    "outcome",
)
INGEST_RESUMES = _counter(
    "perennial_ingest_resumes_total",
    "Partitions resumed from their last durable decision.",
    "Steadily rising: sends to app.events.v1 fail.",
)
# every service
WORKING = _gauge(
    "perennial_working",
    "1 while the service is ready and its loops come round (as `/readyz` and `/healthz` say), else 0.",
    "0: `/readyz` and `/healthz` name the reason; a replica too many owns no shard, and stays at 0.",
    "service",
)
# ingest, segmenter and notifier: how far behind
LAG = _gauge(
    "perennial_input_lag_records",
    "Records between what this process has read of its input topic and the newest the broker told of.",
    "Growing: the service is too slow, or stands.",
    "service",
)
HELD = _gauge(
    "perennial_input_held_seconds",
    "How long an open transaction of whoever writes the input topic has held back what lies behind it, in the partition"
    " that waits longest; 0 where none does.",
    "Growing: a producer hangs; the log line names partition and offset, `docs/operations.md` how to end it.",
    "service",
)
EVENT_AGE = _histogram(
    "perennial_event_age_seconds",
    "Since the gateway received it, the oldest event of a batch: when ingest's decision was acknowledged, when the"
    " segmenter's commit was done (product time).",
    "Rising: this step or the one before it is slow.",
    "service",
    buckets=_SLOW,
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
RELAYED = _counter(
    "perennial_relay_rows_total", "Committed rows the broker acknowledged.", "Zero while rows wait: broker.", "service"
)
# segmenter
SEGMENTER_EVENTS = _counter(
    "perennial_segmenter_events_total",
    "Events folded into users: applied, duplicate, forwarded to the user their id has become part of, or suppressed"
    " (of erased users, and dropped).",
    "duplicate rising: apps post again what they did not know was taken; see the gateway's 503 and its time to answer."
    " suppressed: apps still send for users who were erased.",
    "outcome",
)
MERGES = _counter(
    "perennial_segmenter_merges_total",
    "Merges of users by outcome: asked for; merged into another user (at the shard they leave) and absorbed (at the one"
    " they come to); refused as known, elsewhere (merged into somebody else), suppressed (erased) or too_many; events"
    " forwarded.",
    "asked ahead of merged and refusals for long: a shard has no owner. known rising: an app passes accounts as"
    " anonymous ids.",
    "outcome",
)
SEGMENTER_CHANGES = _counter(
    "perennial_segmenter_changes_total",
    "Ledger rows by kind.",
    "dead_letter rising: see `perennial dlq list`; everything at once: new rules, or a refold.",
    "kind",
)
ERASURES = _counter(
    "perennial_segmenter_erasures_total",
    "Users erased, readmitted, or overwritten (their ids in the ledger, once the notifier has erased them as well).",
    "erased ahead of overwritten for long: the notifier is behind or down.",
    "did",
)
SEGMENTER_DUE = _counter(
    "perennial_segmenter_due_total", "Users brought forward by the sweep.", "Zero for hours: see the watermark's age."
)
DUE_LATENESS = _histogram(
    "perennial_segmenter_due_lateness_seconds",
    "From the moment a user fell due to the commit that says so (product time).",
    "Above 5 s: the sweep lags.",
)
WATERMARK_AGE = _gauge(
    "perennial_segmenter_watermark_age_seconds",
    "Age of the oldest shard's watermark (product time).",
    "Growing: ingest or the segmenter is behind or down.",
)
CACHED_USERS = _gauge(
    "perennial_segmenter_cached_users",
    "Users kept in memory.",
    "At its bound (PERENNIAL_SEGMENTER_CACHED_USERS): more reads.",
)
STAGE_USERS = _gauge(
    "perennial_segmenter_stage_users",
    "Users of this process's shards by stage, as the pack names them.",
    "A jump: new rules, a release of the app, or history that was imported.",
    "stage",
)
ACTIVITY_USERS = _gauge(
    "perennial_segmenter_activity_users",
    "Users of this process's shards by activity.",
    "new or active falling: fewer events come; see the gateway.",
    "activity",
)
SEGMENT_USERS = _gauge(
    "perennial_segmenter_segment_users",
    "Users of this process's shards by segment of the pack.",
    "A jump: new rules, or the signal behind the segment stopped or came twice.",
    "segment",
)
# notifier
MESSAGES = _counter(
    "perennial_notifier_messages_total",
    "What became of messages: sent, suppressed, held_out, failed, unknown, opened.",
    "failed or unknown rising: look at the provider.",
    "outcome",
)
SUPPRESSED = _counter(
    "perennial_notifier_suppressed_total",
    "Messages not sent, by the reason that kept them back.",
    "expired or stale rising: the notifier is behind.",
    "reason",
)
ANSWERS = _counter(
    "perennial_notifier_provider_answers_total",
    "Calls to the provider by what came of them: sent, token_dead, refused, throttled, unauthorised, unavailable,"
    " unknown.",
    "throttled: too fast for the provider; unauthorised: the service account; unavailable, unknown: the provider.",
    "answer",
)
WAITING = _gauge(
    "perennial_notifier_waiting_messages",
    "Messages planned and waiting for their call to the provider.",
    "Growing: the provider is slow or refuses, or sending is stopped.",
)
IN_FLIGHT = _gauge(
    "perennial_notifier_calls_in_flight",
    "Calls to the provider under way.",
    "At its bound (PERENNIAL_NOTIFIER_CONCURRENT_SENDS): the provider is slow.",
)
SENDING = _gauge(
    "perennial_notifier_sending", "0 while all sending is stopped (`POST /v1/kill`), else 1.", "0: somebody stopped it."
)
MESSAGE_SECONDS = _histogram(
    "perennial_notifier_message_seconds",
    "From a message's plan to the provider's yes (product time).",
    "Rising: the provider, or more messages than it takes.",
    buckets=_SLOW,
)
FEED_AGE = _gauge(
    "perennial_notifier_feed_age_seconds",
    "Age of the oldest shard's time, as the feed last told it (product time).",
    "Growing while the segmenter's watermark is young: the notifier is behind, or the relay.",
)
SEND_SECONDS = _histogram("perennial_notifier_send_seconds", "Time of one call to the provider.", "Rising: provider.")
ALERTS = _counter(
    "perennial_notifier_alerts_total",
    "Weather alerts by verdict.",
    "None for hours: whoever posts the feed has stopped.",
    "verdict",
)
FORECASTS = _counter(
    "perennial_notifier_forecasts_total",
    "Forecasts that were posted: kept, or over when they came.",
    "over rising: whoever posts them is late.",
    "became",
)
SCHEDULED = _counter(
    "perennial_notifier_schedule_moments_total",
    "Moments of schedules, by zone: run, missed (the notifier was not there in time), no_forecast (in no city), nobody"
    " (a campaign set going by hand where no user is), repeat (it was there already).",
    "missed: the notifier was down for longer than the campaign is fresh; no_forecast: see whether forecasts come.",
    "became",
)
CITIES_WITHOUT_FORECAST = _counter(
    "perennial_notifier_cities_without_forecast_total",
    "Cities with users that a campaign left out at a moment of its schedule, for no forecast held there.",
    "Rising: forecasts are missing or late.",
)
OPEN_PAGES = _gauge(
    "perennial_notifier_open_pages",
    "Audiences of alerts, by shard, that are not planned to their end; as last looked, 64 at most.",
    "Above zero for long: see the feed's age, and the transaction time.",
)

# archive
ARCHIVE_RECORDS = _counter(
    "perennial_archive_records_total", "Records written to the archive.", "Zero for hours: see its log.", "topic"
)
ARCHIVE_LAG = _gauge(
    "perennial_archive_lag_records",
    "Records of all partitions that no file holds yet.",
    "`perennial archive list` tells each partition's.",
    "topic",
)
ARCHIVE_AGE = _gauge(
    "perennial_archive_age_seconds",
    "For how long the oldest record that no file holds yet has waited.",
    "Days: retention takes what is not archived in time; see its log, and the disk.",
    "topic",
)
ARCHIVE_LOST = _counter(
    "perennial_archive_lost_records_total",
    "Offsets that retention took before they were archived.",
    "Above zero: the archive has a gap; what lies before it makes nothing anew.",
    "topic",
)
# every service with an API
API_REQUESTS = _counter(
    "perennial_api_requests_total",
    "Answers of a service's API by HTTP status; health, metrics and tracking calls are not among them.",
    "5xx: Postgres, or read the log.",
    "service",
    "status",
)
API_SECONDS = _histogram(
    "perennial_api_request_seconds", "Time of an API call.", "Rising: Postgres.", "service", buckets=_FAST
)


class Told(Collector):
    """What the process of one service tells. Every process has all metrics; those named after another service stand
    at zero in it, and would say that it does not send, or is not behind."""

    def __init__(self, service: str) -> None:
        self._others = tuple(f"perennial_{other}_" for other in SERVICES if other != service)

    def collect(self) -> Iterable[Metric]:
        return (metric for metric in REGISTRY.collect() if not metric.name.startswith(self._others))


def begin(service: str) -> None:
    """Have what should never be counted stand at zero from the start: a rate misses the first of a new series."""
    for metric in (FENCED, REPEATS, GAPS, TRANSIENT, BUGS):
        metric.labels(service)


def begin_each(metric: Counter, values: Iterable[str]) -> None:
    """The same for a metric whose one label takes these values."""
    for value in values:
        metric.labels(value)
