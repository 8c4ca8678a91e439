"""What a demo says at its end: the summary as text, and the command that causes one more push."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import which
from typing import Any

REASONS = {
    "stale": "imported history: too old to be news",
    "no_consent": "opted out",
    "no_device": "no token",
    "cap": "sent enough today",
    "gap": "sent something a moment ago",
    "called_off": "what it waited for came, or it was no longer true",
    "not_in_audience": "not whom the campaign is for",
    "token_dead": "the app was deleted; its token is forgotten",
}
"""In a few words, where the reason alone may puzzle."""


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The summary as text, a fact a line."""
    yield "What happened"
    told = found["events"]
    rejected = f" ({_counts(told['rejected_because'])})" if told["rejected_because"] else ""
    yield _line(
        "events",
        f"{told['posted']:,} posted, {told['accepted']:,} accepted, {told['rejected']:,} rejected{rejected}, "
        f"{told['duplicates']:,} known already",
    )
    yield from _users(found)
    if alerts := found.get("alerts"):
        yield _line(
            "alerts",
            f"{alerts['features']} in the feed, {alerts['actual']} actual: {alerts['marine']} marine, "
            f"{alerts['land']} land; {alerts['chains']} chains",
        )
        yield _line(
            "",
            f"{alerts['matched']} hold in known cities, {alerts['told']} of them severe, in "
            f"{alerts['cities_matched']:,} cities; {alerts['users_matched']:,} users live there or added them",
        )
    yield from _pushes(found["pushes"])
    yield from _lift(found["lift"])
    versions = found["versions"]
    yield _line(
        "versions",
        f"perennial {versions['perennial']}, Python {versions['python']}, Postgres {versions['postgres']}, "
        f"Kafka {versions['kafka']}, pack {versions['pack']} (rules version {versions['rules']})",
    )
    names = {"setup": "ready", "first_push": "first push", "total": "all at rest"}
    seconds = {names[name]: value for name, value in found["seconds"].items() if value is not None}
    yield _line("time", ", ".join(f"{name} after {value:.1f} s" for name, value in seconds.items()))


def _users(found: Mapping[str, Any]) -> Iterator[str]:
    yield _line("users", f"{found['users']:,}")
    yield _line("  stage", " → ".join(f"{name} {n:,}" for name, n in found["stage"].items()))
    yield _line("  activity", _counts(found["activity"]))
    shares = ("activation_percent", "repeat_percent", "loyal_percent")
    rates = found["rates"]
    yield _line("  rates", ", ".join(f"{name.removesuffix('_percent')} {rates[name]:g} %" for name in shares))
    if shop := found.get("commerce"):
        words = {name.replace("_", " "): n for name, n in shop.items() if name != "revenue"}
        yield _line("shop", f"{_counts(words)}, revenue {shop['revenue'] / 100:,.2f}")
    if top := [f"{c['name']}, {c['state']} ({c['relation']}) {c['users']}" for c in found["cohorts"][:5]]:
        yield _line("  cohorts", "; ".join(top))


def _pushes(pushes: Mapping[str, Any]) -> Iterator[str]:
    suppressed = sum(pushes["suppressed"].values())
    yield _line(
        "pushes",
        f"{pushes['planned']:,} planned: {pushes['sent']:,} sent, {pushes['held_out']:,} held out, "
        f"{suppressed:,} suppressed, {pushes['failed']:,} failed"
        + "".join(f", {pushes[name]:,} {name}" for name in ("waiting", "held", "unknown") if pushes[name]),
    )
    yield _line("", f"{pushes['received_by_sandbox']:,} received by the sandbox, {pushes['opened']:,} opened")
    for label, reasons in (("suppressed", pushes["suppressed"]), ("failed", pushes["failed_because"])):
        for reason, n in sorted(reasons.items(), key=lambda item: -item[1]):
            yield _line(f"  {label}", f"{reason} {n:,}" + (f" ({REASONS[reason]})" if reason in REASONS else ""))
            label = ""
    for campaign, states in pushes["campaigns"].items():
        yield _line(f"  {campaign}", _counts({name.replace("_", " "): n for name, n in states.items()}))


def _lift(lift: Mapping[str, Any]) -> Iterator[str]:
    """Of each campaign that was for anybody the share that opened the app; the rest is in the JSON and the API."""
    exposed = {name: told for name, told in lift["campaigns"].items() if told["treated"]["users"]}
    if exposed:
        yield _line("lift", "simulated: what these people do is made up, how it is measured is not")
    for campaign, told in exposed.items():
        treated, holdout, found = told["treated"], told["holdout"], told["opened_percent"]
        if found is None:
            yield _line(
                f"  {campaign}",
                f"not enough data: {treated['users']:,} treated, {holdout['users']:,} held out; "
                f"{told['minimum_users']} on each side are needed",
            )
            continue
        yield _line(
            f"  {campaign}",
            f"{treated['opened_percent']:.1f} % of {treated['users']:,} treated opened the app again, "
            f"{holdout['opened_percent']:.1f} % of {holdout['users']:,} held out:",
        )
        yield _line(
            "",
            f"{found['difference']:+.1f} points ({found['low']:.1f} to {found['high']:.1f}, "
            f"{told['confidence_percent']} %); the windows of {told['still_open']:,} users are still open",
        )


def _counts(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in values.items())


def _line(label: str, text: str) -> str:
    return f"  {label:<18} {text}".rstrip()


def as_typed(program: str, home: Path, folder: Path) -> tuple[str, str]:
    """How whoever stands in `folder` calls the program that was called as `program`, and the option that names the
    home (empty: the default one)."""
    path = Path(program)
    told = "perennial"
    if path.name == told and path.is_absolute() and path.parent != Path(which(told) or "").parent:
        told = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
    elif path.name == told and path.parent != Path():
        told = str(path)
    here = home.relative_to(folder) if home.is_relative_to(folder) else home
    return told, "" if str(here) == ".perennial" else f" --home {shlex.quote(str(here))}"


def where(
    status: Mapping[str, Any], here: tuple[str, str], new: str, *, someone: str | None, shop: bool, once: bool
) -> Iterator[str]:
    """Where everything is and what to try. `here`: see `as_typed`; `new`: what no user id has been made of yet."""
    program, home = here
    notes = {
        "sandbox": f"{status['sandbox']}/  (the phones; each push says why it was sent)",
        "gateway": f"{status['gateway']}  (apps post here: write key {status['write_key']})",
        "segmenter": f"{status['segmenter']}/docs  (users, counts, cohorts: admin key {status['admin_key']})",
        "notifier": f"{status['notifier']}/docs  (messages, campaigns, alerts: admin key {status['admin_key']})",
        "ingest": f"{status['ingest']}/metrics  (no API; the others have /metrics, too)",
    }
    yield "Where it is" + (", while it runs (without --once)" if once else "")
    for name, note in notes.items():
        yield f"  {name:<10} {note}"
    yield ""
    yield "One more push: someone new opens the app, and is welcomed. Once; for another change the six letters"
    yield f"  {curl(status['gateway'], status['write_key'], f'you-{new}')}"
    yield ""
    yield "More"
    if not shop:
        yield f"  {program} demo alert 'Tornado Warning' 'Dallas, TX'{home}"
        yield f"  {program} demo forecast 'Dallas, TX'{home}"
    if someone:
        yield f"  {program} follow {someone}{home}"
    yield f"  curl -H 'Authorization: Bearer {status['admin_key']}' {status['notifier']}/v1/campaigns/win_back/results"


def curl(gateway: str, write_key: str, user_id: str) -> str:
    """A command that makes a new user open the app, who is then welcomed by a push."""
    event = {
        "userId": user_id,
        "event": "Application Opened",
        "context": {
            "device": {"id": f"phone-{user_id}", "type": "ios", "token": f"token-{user_id}"},
            "locale": "en-US",
            "timezone": "America/New_York",
        },
    }
    return (
        f"curl -u {write_key}: -H 'Content-Type: application/json' \\\n"
        f"    -d '{json.dumps(event)}' \\\n    {gateway}/v1/track"
    )
