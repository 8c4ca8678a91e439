"""May this user be sent this, now? One small function a gate; each answers with its reason and its values."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from services.notifier.domain.campaign import Occurrence
from services.notifier.domain.holdout import held_out
from services.notifier.domain.recipient import Recipient
from shared.contracts.rules import Campaign


class Reason(StrEnum):
    """Why a message was suppressed. Closed: a label of metrics and a field of `push.outcomes.v1`."""

    PAUSED = "paused"
    NO_CONSENT = "no_consent"
    NO_DEVICE = "no_device"
    STALE = "stale"
    EXPIRED = "expired"
    ABORTED = "aborted"
    UNRENDERABLE = "unrenderable"


class Check(msgspec.Struct, frozen=True):
    """One gate's answer. `reason` says what it means that it did not pass (None: held out)."""

    gate: str
    passed: bool
    values: dict[str, Any]
    reason: Reason | None = None


def enabled(campaign: Campaign) -> Check:
    return Check("enabled", campaign.enabled, {"enabled": campaign.enabled}, Reason.PAUSED)


def consent(recipient: Recipient, required: bool) -> Check:
    """Consent counts as given until it is withdrawn, unless the pack requires it to have been given."""
    given = recipient.push_consent
    passed = given is True or (given is None and not required)
    return Check("consent", passed, {"push_consent": given, "required": required}, Reason.NO_CONSENT)


def device(recipient: Recipient) -> Check:
    return Check("device", bool(recipient.devices), {"devices": len(recipient.devices)}, Reason.NO_DEVICE)


def freshness(campaign: Campaign, occurrence: Occurrence, now_ms: int) -> Check:
    """Old news is not sent: at most `freshness_seconds` after it happened (also when a backlog is read)."""
    age_ms = now_ms - occurrence.occurred_at
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
