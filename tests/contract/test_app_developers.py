"""Does what developers of apps are told work? Examples go through the gateway's and ingest's own functions, tables are
compared with the packs, the push with what is handed to FCM."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from services.ingest.domain import intake_http
from services.ingest.domain.intake import Intake, RawRecord, Refused, Taken
from services.notifier.transports.fcm import message_body
from services.notifier.transports.push import Push
from services.packs import load_pack
from shared.contracts.identifiers import shard_of
from shared.contracts.rules import Rules
from shared.gazetteer import load as load_gazetteer
from shared.process.clock import parse_instant
from tests.support.prometheus import ROOT

PAGE = (ROOT / "docs/app-developers.md").read_text()
EXAMPLES: list[tuple[str, str]] = re.findall(r"^```json event ([^\n]+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
POSTS: list[tuple[str, str]] = re.findall(
    r'curl -u "\$W:" "\$GATEWAY(/v1/\w+)".*? -d \'(.*?)\'$', PAGE, re.MULTILINE | re.DOTALL
)
NOW = parse_instant("2026-01-31T12:00:02.000Z")


def judged(pack: str, event: intake_http.Event) -> Taken | Refused:
    user_id, kind, message_id, sent_at, value = event
    assert user_id is not None and message_id is not None
    headers = {"type": kind, "message_id": message_id, "sent_at": sent_at.decode()}
    raw = RawRecord(shard_of(user_id, 4), 1, user_id.encode(), value, {k: v.encode() for k, v in headers.items()}, NOW)
    verdict = Intake(load_pack(pack), load_gazetteer(), 4).judge(raw)
    assert isinstance(verdict, Taken | Refused)
    return verdict


@pytest.mark.parametrize(("told", "body"), EXAMPLES)
def test_an_event_is_taken_or_rejected_as_the_page_says(told: str, body: str) -> None:
    pack, _, reason = told.partition(" ")
    opened = intake_http.open_batch(b'{"batch": [' + body.encode() + b"]}")
    assert isinstance(opened, intake_http.BatchBody)
    (event,) = intake_http.batch(opened)
    verdict = judged(pack, event)
    if reason:
        assert isinstance(verdict, Refused) and verdict.reason == reason
        return
    assert isinstance(verdict, Taken), verdict
    said = json.loads(body)
    kept: dict[str, Any] = said.get("properties", {})
    # the example shows nothing that would be dropped, points aside, which become a city
    assert verdict.properties == {k: v for k, v in kept.items() if k not in ("lat", "lon")}
    assert (verdict.city_id is not None) == ("City" in said["event"])
    context = said.get("context", {})
    if context:
        assert verdict.context is not None and verdict.context.device is not None
        assert msgspec.to_builtins(verdict.context.device) == [*context["device"].values()]
        told_of = (
            verdict.context.locale,
            verdict.context.timezone,
            verdict.context.app_version,
            verdict.context.campaign,
        )
        assert told_of == ("es-US", "America/Chicago", "4.2.0", "newsletter")


def test_what_is_posted_by_curl_is_taken() -> None:
    assert [path for path, _ in POSTS] == ["/v1/track", "/v1/batch"]
    (_, single), (_, several) = POSTS
    one = intake_http.open_single(single.encode())
    assert isinstance(one, intake_http.SingleBody)
    event = intake_http.single(one, "track", single.encode())
    assert not isinstance(event, intake_http.Refused)
    batch = intake_http.open_batch(several.encode())
    assert isinstance(batch, intake_http.BatchBody)
    for each in (event, *intake_http.batch(batch)):
        assert isinstance(judged("weather", each), Taken)


def test_a_push_is_what_fcm_is_handed() -> None:
    (body,) = re.findall(r"^```json push\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    said = json.loads(body)["message"]
    ttl = int(said["android"]["ttl"].removesuffix("s"))
    push = Push(
        said["data"]["message_id"], said["token"], said["notification"]["title"], said["notification"]["body"],
        {"campaign": said["data"]["campaign"]}, said["android"]["collapse_key"], ttl, high_priority=True,
    )  # fmt: skip
    sent_at = int(said["apns"]["headers"]["apns-expiration"]) - ttl
    assert json.loads(message_body(push, sent_at * 1000)) == {"message": said}


def tables() -> dict[str, dict[str, tuple[str, set[str]]]]:
    """Per pack, from the page: event name → signal and properties kept."""
    found: dict[str, dict[str, tuple[str, set[str]]]] = {}
    for title, section in re.findall(r"^### Pack `(\w+)`.*?\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL):
        for names, signal, kept in re.findall(r"^\| (`.*?) \| `(\w+)` \| .* \| (.*?) ?\|$", section, re.MULTILINE):
            for name in re.findall(r"`(.*?)`", names):
                found.setdefault(title, {})[name] = (signal, set(re.findall(r"`(\w+)`", kept)))
    return found


@pytest.mark.parametrize("pack", ["weather", "commerce", "commerce_stages"])
def test_the_tables_are_those_of_the_packs(pack: str) -> None:
    """Who sends an event that the pack does not know, or a property it drops, would wait for an effect in vain."""
    rules: Rules = load_pack(pack)
    known = {
        name: (signal, set(rules.intake.properties.get(name, ())))
        for signal, names in rules.signals.items()
        for name in names
    }
    assert tables()[pack.removesuffix("_stages")] == known


def test_the_limits_are_those_of_the_gateway() -> None:
    kilobytes = intake_http.MAX_EVENT_BYTES // 1024, intake_http.MAX_BATCH_BYTES // 1024
    said = re.findall(r"At most (\d+) KB an event, (\d+) KB a body .*?, ([\d,]+) events a batch", PAGE)
    assert [(int(a), int(b), c) for a, b, c in said] == [(*kilobytes, f"{intake_http.MAX_BATCH_EVENTS:,}")]
