"""May this user be sent this, now? One small function a gate; each answers with its reason and its values."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from services.notifier.domain import frequency_cap, quiet_hours
from services.notifier.domain.alert_chain import Step
from services.notifier.domain.campaign import Occurrence
from services.notifier.domain.frequency_cap import Past
from services.notifier.domain.holdout import held_out
from services.notifier.domain.recipient import Recipient
from shared.contracts.events import FeedRow
from shared.contracts.rules import Audience, Campaign, Limits, QuietHours


class Reason(StrEnum):
    """Why a message was suppressed. Closed: a label of metrics and a field of `push.outcomes.v1`."""

    PAUSED = "paused"
    NO_CONSENT = "no_consent"
    NO_DEVICE = "no_device"
    STALE = "stale"
    EXPIRED = "expired"
    ABORTED = "aborted"
    UNRENDERABLE = "unrenderable"
    CAP = "cap"
    GAP = "gap"
    REPEAT = "repeat"
    QUIET_HOURS = "quiet_hours"
    SUNSET = "sunset"
    LEFT_AUDIENCE = "left_audience"
    NOT_IN_AUDIENCE = "not_in_audience"
    CALLED_OFF = "called_off"
    SUPERSEDED = "superseded"


EVERYONE = Audience()


class Check(msgspec.Struct, frozen=True):
    """One gate's answer. `reason` says what it means that it did not pass (None: held out)."""

    gate: str
    passed: bool
    values: dict[str, Any]
    reason: Reason | None = None


def chain(step: Step) -> Check:
    """What the chain of alerts asks for; nobody is stopped here, for a step that does nothing is no message."""
    return Check("chain", True, {"reason": step.reason, "action": step.action, "sound": step.sound})


def enabled(campaign: Campaign) -> Check:
    return Check("enabled", campaign.enabled, {"enabled": campaign.enabled}, Reason.PAUSED)


def audience(campaign: Campaign, recipient: Recipient) -> Check:
    """The user is one of those the campaign is for, as far as is known by now."""
    wanted = campaign.audience
    passed = (
        (not wanted.stage or recipient.stage in wanted.stage)
        and (not wanted.activity or recipient.activity in wanted.activity)
        and (not wanted.segment or not set(wanted.segment).isdisjoint(recipient.segments))
        and set(wanted.not_segment).isdisjoint(recipient.segments)
    )
    values = {"stage": recipient.stage, "activity": recipient.activity, "segments": recipient.segments}
    return Check("audience", passed, {**values, "audience": msgspec.to_builtins(wanted)}, Reason.NOT_IN_AUDIENCE)


def consent(recipient: Recipient, required: bool) -> Check:
    """Consent counts as given until it is withdrawn, unless the pack requires it to have been given."""
    given = recipient.push_consent
    passed = given is True or (given is None and not required)
    return Check("consent", passed, {"push_consent": given, "required": required}, Reason.NO_CONSENT)


def device(recipient: Recipient) -> Check:
    return Check("device", bool(recipient.devices), {"devices": len(recipient.devices)}, Reason.NO_DEVICE)


def called_off(row: FeedRow) -> Check:
    """What the campaign was to wait for came to nothing: the row says why."""
    values = {
        "by": row.kind,
        "what": row.payload.get("event") or row.payload.get("segment"),
        "id": row.cause[1],
        "occurred_at": row.occurred_at,
    }
    return Check("unless", False, values, Reason.CALLED_OFF)


def freshness(campaign: Campaign, occurrence: Occurrence, now_ms: int) -> Check:
    """Old news is not sent: at most `freshness_seconds` after it happened, or after the campaign's delay (also when a
    backlog is read)."""
    age_ms = now_ms - occurrence.fresh_at
    passed = age_ms <= campaign.freshness_seconds * 1000
    return Check("freshness", passed, {"age_ms": age_ms, "freshness_seconds": campaign.freshness_seconds}, Reason.STALE)


def validity(occurrence: Occurrence, now_ms: int) -> Check:
    passed = occurrence.valid_until is None or now_ms < occurrence.valid_until
    return Check("validity", passed, {"valid_until": occurrence.valid_until, "now": now_ms}, Reason.EXPIRED)


def holdout(campaign: Campaign, recipient: Recipient, salt: str) -> Check:
    """Safety campaigns hold nobody out."""
    percent = 0.0 if campaign.safety else campaign.holdout_percent
    out = percent > 0 and held_out(campaign.id, salt, recipient.assignment_id or recipient.user_id, percent)
    return Check("holdout", not out, {"holdout_percent": percent, "safety": campaign.safety})


def caps(limits: Limits, campaign: Campaign, past: Sequence[Past], zone: ZoneInfo, now_ms: int) -> Check:
    """Every cap that binds the campaign has room for one more push."""
    asked: list[dict[str, Any]] = [
        {
            "most": cap.most,
            "used": frequency_cap.used(cap, past, zone, now_ms),
            "window": f"{cap.hours} hours" if cap.window == "rolling" else cap.window,
            "category": cap.category or None,
        }
        for cap in limits.caps
        if frequency_cap.binds(cap, campaign.category)
    ]
    room = all(cap["used"] < cap["most"] for cap in asked)
    return Check("caps", room, {"caps": asked, "zone": zone.key}, Reason.CAP)


def gap(limits: Limits, past: Sequence[Past], now_ms: int) -> Check:
    last_at = frequency_cap.last_at(past, now_ms)
    passed = last_at is None or now_ms - last_at >= limits.gap_minutes * 60_000
    return Check("gap", passed, {"gap_minutes": limits.gap_minutes, "last_at": last_at}, Reason.GAP)


def repeat(campaign: Campaign, key: str, past: Sequence[Past], now_ms: int) -> Check:
    repeats = frequency_cap.repeats(campaign, key, past, now_ms)
    values = {"no_repeat_days": campaign.no_repeat_days, "offer": campaign.offer or None, "repeats": repeats}
    return Check("repeat", not repeats, values, Reason.REPEAT)


def quiet(hours: QuietHours, zone: ZoneInfo, now_ms: int) -> Check:
    """Not within the quiet hours of the user's zone; `until` says when they are over."""
    until = quiet_hours.quiet_until(hours, zone, now_ms)
    values = {"from": hours.from_, "to": hours.to, "zone": zone.key, "until": until}
    return Check("quiet_hours", until is None, values, Reason.QUIET_HOURS)


def sunset(limits: Limits, past: Sequence[Past], now_ms: int) -> Check:
    unanswered = frequency_cap.unanswered(past, now_ms)
    passed = unanswered < limits.sunset_pushes
    return Check("sunset", passed, {"sunset_pushes": limits.sunset_pushes, "unanswered": unanswered}, Reason.SUNSET)
