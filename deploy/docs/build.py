"""Writes `asyncapi.yaml` and `docs/metrics.md` from the code; `--check` says instead which of them is out of date.

Run from anywhere: `python deploy/docs/build.py [--check]`.
"""

# ruff: noqa: INP001 - deploy/ holds scripts, and is no package

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402 - the path above comes first

from shared.contracts.asyncapi import document  # noqa: E402
from shared.process.metrics import DECLARED  # noqa: E402

_METRICS_HEAD = """\
# Metrics

Every service answers `GET /metrics` on its own port, in Prometheus' text format. This page is written from
`shared/process/metrics.py`, where each metric is declared once (`python deploy/docs/build.py`). Labels come from closed
sets; no user, token or message id is ever one. Histograms are in seconds. Beside these each process tells
`process_cpu_seconds_total` (one core each: a rate near 1 is full) and `process_resident_memory_bytes`. Alerts and
dashboard: `docs/operations.md`. Where to look first (`perennial_` left out):

{signals}

| Metric | Kind | Labels | Meaning | When it moves |
|---|---|---|---|---|
"""

_SIGNALS = {
    "": ("Traffic", "Errors", "Time", "How full"),
    "gateway": (
        "`gateway_events_total`",
        "`gateway_requests_total`, `gateway_broker_away`",
        "`gateway_request_seconds`",
        "`gateway_in_flight_bytes`",
    ),
    "ingest": (
        "`ingest_decisions_total`",
        "`ingest_rejections_total`, `transient_failures_total`",
        "`event_age_seconds`",
        "`input_lag_records`, `input_held_seconds`",
    ),
    "segmenter": (
        "`segmenter_events_total`, `segmenter_changes_total`",
        "`gap_records_total`, `bugs_total`, `fenced_total`",
        "`event_age_seconds`, `batch_seconds`, `segmenter_due_lateness_seconds`",
        "`input_lag_records`, `segmenter_watermark_age_seconds`, `relay_pending_rows`",
    ),
    "notifier": (
        "`notifier_messages_total`, `notifier_alerts_total`",
        "`notifier_provider_answers_total`, `gap_records_total`, `bugs_total`",
        "`notifier_message_seconds`, `notifier_send_seconds`",
        "`notifier_waiting_messages`, `notifier_feed_age_seconds`, `input_lag_records`",
    ),
}


def signals() -> str:
    rows = [f"| {service} | {' | '.join(cells)} |" for service, cells in _SIGNALS.items()]
    return "\n".join([rows[0], "|---|---|---|---|---|", *rows[1:]])


def asyncapi() -> str:
    head = "# Written by deploy/docs/build.py from shared/contracts/asyncapi.py. Do not edit.\n"
    return head + yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=120)


def metrics() -> str:
    rows = [
        f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | {m.meaning} | {m.action} |"
        for m in DECLARED
    ]
    return _METRICS_HEAD.format(signals=signals()) + "\n".join(rows) + "\n"


def main(arguments: list[str]) -> int:
    stale = []
    for path, text in ((ROOT / "asyncapi.yaml", asyncapi()), (ROOT / "docs" / "metrics.md", metrics())):
        if "--check" not in arguments:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(str(path.relative_to(ROOT)))
    if stale:
        sys.stderr.write(f"out of date: {', '.join(stale)}; run `python deploy/docs/build.py`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
