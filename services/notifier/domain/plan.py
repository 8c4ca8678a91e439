"""What becomes of one occurrence for one user under one campaign: sent, held, suppressed or held out, and why."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from services.notifier.domain import gates
from services.notifier.domain.alert_chain import Action, Step
from services.notifier.domain.campaign import Occurrence
from services.notifier.domain.frequency_cap import Past, content_key
from services.notifier.domain.gates import Check, Reason
from services.notifier.domain.personalise import Aborted, Compiled, Rendered, Text, Unrenderable, render
from services.notifier.domain.quiet_hours import zone_named
from services.notifier.domain.recipient import Recipient, device_for
from shared.contracts.events import Device
from shared.contracts.identifiers import push_message_id
from shared.contracts.rules import Campaign, Limits
from shared.process.clock import iso, month_of

MAX_COLLAPSE_BYTES = 64
"""APNs' limit on `apns-collapse-id`."""


class Send(msgspec.Struct, frozen=True):
    """One push to the user's most recently set device. It must not be shown after `expires_at`.

    `counts`: it uses caps up, with `content_key` as what must not be repeated. `zone`: whose quiet hours it must
    not go out in, also if it has to wait (empty: none bind it). `action` and `sound`: what it does on the phone.
    """

    message_id: str
    device: Device
    title: str
    body: str
    collapse_id: str
    ttl_seconds: int
    expires_at: int
    explain: tuple[Check, ...]
    counts: bool
    content_key: str
    zone: str
    action: Action
    sound: bool


class Defer(msgspec.Struct, frozen=True):
    """To be planned again at `until`, the end of the user's quiet hours; fresh and valid even then."""

    message_id: str
    until: int
    explain: tuple[Check, ...]


class Suppress(msgspec.Struct, frozen=True):
    message_id: str
    reason: Reason
    detail: str
    explain: tuple[Check, ...]


class HeldOut(msgspec.Struct, frozen=True):
    """Would have been sent: every other gate passed and the text could be made."""

    message_id: str
    explain: tuple[Check, ...]


Texts = dict[tuple[str | None, bool], Text]
"""What was said of one occurrence in one city: by locale, and by whether the city is the user's."""
Verdict = Send | Defer | Suppress | HeldOut
_NO_LIMITS = Limits()
FIRST = Step("show", True, "first")
"""What is new on the phone."""


def plan(
    campaign: Campaign,
    recipient: Recipient,
    occurrence: Occurrence,
    now_ms: int,
    salt: str,
    compiled: Compiled,
    consent_required: bool = False,
    limits: Limits = _NO_LIMITS,
    past: Sequence[Past] = (),
    message_id: str = "",
    step: Step = FIRST,
    device_id: str = "",
    texts: Texts | None = None,
) -> Verdict:
    """Decide, in the order: enabled, audience, consent, device, freshness, validity, content, holdout, caps, gap,
    repeat, quiet hours, sunset; the audience and the last five where the rules declare them.

    One message per user, to the device that shows what it replaces or takes away, else to the one set last: a user with
    a phone and a tablet is told once.
    Safety campaigns are never held out, and none of the last five binds them; every other gate does. The holdout
    comes before what depends on earlier pushes, which those held out have fewer of: up to there they are like those
    sent in every respect, and whoever is stopped behind it still counts as treated.
    What is silent on the phone disturbs nobody: no limit binds it either, and it uses none up. What takes a
    notification away has no text, and is for whoever was shown it, whomever the campaign is for.
    `past`: pushes that count, of at least the rules' horizon. `message_id`: of a message that was kept already
    (default: the occurrence's). `step`: what an alert's chain asks for; `device_id`: the device that shows what it
    may go on with. `texts`: those made of the very same occurrence for others; looked at, and added to, where templates
    do not name the user. `explain` holds every gate asked, in order; the first that does not pass is the last.
    """
    message_id = message_id or message_id_of(campaign, recipient.user_id, occurrence)
    explain = [gates.chain(step)] if step is not FIRST else []
    away = step.action == "retract"
    for check in (
        gates.enabled(campaign),
        *([gates.audience(campaign, recipient)] if campaign.audience != gates.EVERYONE and not away else ()),
        gates.consent(recipient, consent_required),
        gates.device(recipient),
        gates.freshness(campaign, occurrence, now_ms),
        gates.validity(occurrence, now_ms),
    ):
        explain.append(check)
        if not check.passed:
            assert check.reason is not None
            return Suppress(message_id, check.reason, _detail(check), tuple(explain))

    text = Rendered("", "") if away else _text(campaign, recipient, occurrence, compiled, texts)
    content = _content(text)
    explain.append(content)
    if not isinstance(text, Rendered):
        assert content.reason is not None
        return Suppress(message_id, content.reason, text.reason, tuple(explain))

    explain.append(gates.holdout(campaign, recipient, salt))
    if not explain[-1].passed:
        return HeldOut(message_id, tuple(explain))

    zone = zone_named(recipient.timezone, limits.quiet_hours.zone)
    key = content_key(campaign, text.title, text.body)
    bound = step.sound and not campaign.safety
    if bound:
        for check in _limits(limits, campaign, key, past, zone, now_ms):
            explain.append(check)
            if not check.passed:
                assert check.reason is not None
                until = check.values.get("until")
                if until is not None and _good_at(campaign, occurrence, until):
                    return Defer(message_id, until, tuple(explain))
                return Suppress(message_id, check.reason, _detail(check), tuple(explain))

    ttl_seconds = campaign.ttl_seconds
    if occurrence.valid_until is not None:
        ttl_seconds = min(ttl_seconds, (occurrence.valid_until - now_ms) // 1000)
    return Send(
        message_id=message_id,
        device=device_for(recipient, step.action or "show", device_id),
        title=text.title,
        body=text.body,
        collapse_id=collapse_id_of(campaign, occurrence),
        ttl_seconds=ttl_seconds,
        expires_at=now_ms + ttl_seconds * 1000,
        explain=tuple(explain),
        counts=bound,
        content_key=key,
        zone=zone.key if step.sound and _quiet_hours_bind(limits, campaign) else "",
        action=step.action or "show",
        sound=step.sound,
    )


def _limits(
    limits: Limits, campaign: Campaign, key: str, past: Sequence[Past], zone: ZoneInfo, now_ms: int
) -> Iterator[Check]:
    """The gates that bind how often and when, where they are declared."""
    if limits.caps:
        yield gates.caps(limits, campaign, past, zone, now_ms)
    if limits.gap_minutes:
        yield gates.gap(limits, past, now_ms)
    if campaign.no_repeat_days:
        yield gates.repeat(campaign, key, past, now_ms)
    if _quiet_hours_bind(limits, campaign):
        yield gates.quiet(limits.quiet_hours, zone, now_ms)
    if limits.sunset_pushes:
        yield gates.sunset(limits, past, now_ms)


def _quiet_hours_bind(limits: Limits, campaign: Campaign) -> bool:
    return bool(limits.quiet_hours.from_) and not campaign.safety and not campaign.any_hour


def _good_at(campaign: Campaign, occurrence: Occurrence, then_ms: int) -> bool:
    """Whether waiting until then is worth it: the occurrence is still fresh and valid."""
    return gates.freshness(campaign, occurrence, then_ms).passed and gates.validity(occurrence, then_ms).passed


def message_id_of(campaign: Campaign, user_id: str, occurrence: Occurrence) -> str:
    """The same for the same occurrence, so that the ledger holds one message at most."""
    month = month_of(occurrence.began_at or occurrence.occurred_at)
    return push_message_id(month, campaign.id, campaign.version, user_id, occurrence.id)


def collapse_id_of(campaign: Campaign, occurrence: Occurrence) -> str:
    """At most 64 ASCII bytes: a readable head of the campaign's id, and a hash of (campaign, what is shown)."""
    head = re.sub(r"[^A-Za-z0-9_-]", "", campaign.id)[:24]
    shown = "\x1f".join((campaign.id, occurrence.collapse or occurrence.id))
    return f"{head}.{hashlib.blake2b(shown.encode(), digest_size=12).hexdigest()}"


def _text(
    campaign: Campaign, recipient: Recipient, occurrence: Occurrence, compiled: Compiled, texts: Texts | None
) -> Text:
    variables = variables_of(campaign, recipient, occurrence)
    if texts is None or compiled.personal:
        return render(compiled, recipient.locale, variables)
    key = recipient.locale, bool(variables.get("city", {}).get("theirs"))
    if key not in texts:
        texts[key] = render(compiled, recipient.locale, variables)
    return texts[key]


def variables_of(campaign: Campaign, recipient: Recipient, occurrence: Occurrence) -> dict[str, Any]:
    """What the templates see: the names of `campaign.known_variables`."""
    told = occurrence.variables
    if "city" in told:
        city_id = told["city"].get("id")
        theirs = city_id is not None and city_id in (recipient.default_city, *recipient.added)
        told = told | {"city": told["city"] | {"theirs": theirs}}
    return {
        **told,
        "occurred_at": iso(occurrence.occurred_at),
        "user": {
            "stage": recipient.stage,
            "activity": recipient.activity,
            "locale": recipient.locale,
            "timezone": recipient.timezone,
        },
        "campaign": {"id": campaign.id, "title": campaign.title},
    }


def _content(text: Text) -> Check:
    match text:
        case Rendered():
            return Check("content", True, {"title": text.title, "body": text.body})
        case Aborted():
            return Check("content", False, {"aborted": text.reason}, Reason.ABORTED)
        case Unrenderable():
            return Check("content", False, {"error": text.reason}, Reason.UNRENDERABLE)


def _detail(check: Check) -> str:
    return ", ".join(f"{name}={value}" for name, value in check.values.items())
