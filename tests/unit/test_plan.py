"""One occurrence, one user, one campaign: sent, suppressed or held out, always with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notifier.domain.campaign import (
    Occurrence,
)
from services.notifier.domain.frequency_cap import DAY_MS, PENDING, Past, content_key
from services.notifier.domain.gates import Reason
from services.notifier.domain.personalise import Rendered, compile_templates
from services.notifier.domain.plan import (
    MAX_COLLAPSE_BYTES,
    Defer,
    HeldOut,
    Send,
    Suppress,
    Verdict,
    collapse_id_of,
    plan,
)
from services.notifier.domain.recipient import Recipient
from shared.contracts.events import Device
from shared.contracts.rules import (
    Audience,
    Campaign,
    Cap,
    Limits,
    QuietHours,
    StageTrigger,
    Template,
    Trigger,
)

NOW = 1_767_323_045_678
PHONE, TABLET = Device("d1", "ios", "t1"), Device("d2", "android", "t2")
USER = Recipient("u1", (PHONE, TABLET), None, "en", "Europe/Oslo", "activated", "active", assignment_id="u1")
BODY = "Welcome to {{ change.to }}{% if user.stage == 'silent' %}{% abort_message('silent') %}{% endif %}"


def campaign(body: str = BODY, trigger: Trigger | None = None, **options: Any) -> Campaign:
    return Campaign(
        "welcome", "Welcome", trigger or StageTrigger(["activated"]), {"en": Template("Hi", body)}, **options
    )


def occurrence(age_ms: int = 0, valid_ms: int | None = None) -> Occurrence:
    return Occurrence("o1", NOW - age_ms, None if valid_ms is None else NOW + valid_ms, {"change": {"to": "activated"}})


def planned(
    c: Campaign,
    user: Recipient = USER,
    what: Occurrence | None = None,
    required: bool = False,
    limits: Limits = Limits(),  # noqa: B008
    past: Sequence[Past] = (),
) -> Verdict:
    return plan(c, user, what or occurrence(), NOW, "salt", compile_templates(c), required, limits, past)


def user(**changes: Any) -> Recipient:
    fields = {name: getattr(USER, name) for name in USER.__struct_fields__}
    return Recipient(**(fields | changes))


def test_a_push_goes_to_the_device_set_last_and_to_no_other() -> None:
    verdict = planned(campaign())
    assert isinstance(verdict, Send)
    assert (verdict.device, verdict.title, verdict.body) == (TABLET, "Hi", "Welcome to activated")
    assert [check.gate for check in verdict.explain] == [
        "enabled",
        "consent",
        "device",
        "freshness",
        "validity",
        "content",
        "holdout",
    ]
    assert all(check.passed for check in verdict.explain)


@pytest.mark.parametrize(
    ("options", "changes", "what", "reason"),
    [
        ({"enabled": False}, {"push_consent": False}, occurrence(), Reason.PAUSED),
        ({}, {"push_consent": False, "devices": ()}, occurrence(), Reason.NO_CONSENT),
        ({}, {"devices": ()}, occurrence(10**9), Reason.NO_DEVICE),
        ({}, {}, occurrence(3_600_001, -1), Reason.STALE),
        ({}, {}, occurrence(0, 0), Reason.EXPIRED),
        ({"holdout_percent": 100.0}, {"stage": "silent"}, occurrence(), Reason.ABORTED),
        ({"body": "{{ 1 | divided_by: 0 }}"}, {}, occurrence(), Reason.UNRENDERABLE),
    ],
)
def test_the_first_gate_that_fails_gives_the_reason(
    options: dict[str, Any], changes: dict[str, Any], what: Occurrence, reason: Reason
) -> None:
    """Each case also fails a later gate, so a changed order shows."""
    verdict = planned(campaign(**options), user(**changes), what)
    assert isinstance(verdict, Suppress)
    assert verdict.reason is reason
    assert [check.passed for check in verdict.explain][-1] is False
    assert all(check.passed for check in verdict.explain[:-1])


@pytest.mark.parametrize(
    ("audience", "segments", "reached"),
    [
        (Audience(stage=["reach", "activated"]), (), True),
        (Audience(stage=["reach"]), (), False),
        (Audience(activity=["at_risk"]), (), False),
        (Audience(segment=["promoters", "buyers"]), ("buyers",), True),
        (Audience(segment=["promoters"]), ("buyers",), False),
        (Audience(not_segment=["detractors"]), (), True),
        (Audience(not_segment=["detractors"]), ("buyers", "detractors"), False),
        (Audience(["activated"], ["active"], ["buyers"], ["detractors"]), ("buyers",), True),
        (Audience(["activated"], ["lapsed"], ["buyers"], ["detractors"]), ("buyers",), False),
    ],
)
def test_a_campaign_is_for_its_audience_safety_or_not(
    audience: Audience, segments: tuple[str, ...], reached: bool
) -> None:
    """Asked before consent: who was never meant is not counted among those who refused."""
    for safety in (False, True):
        verdict = planned(campaign(audience=audience, safety=safety), user(segments=segments, push_consent=False))
        assert isinstance(verdict, Suppress)
        assert verdict.reason is (Reason.NO_CONSENT if reached else Reason.NOT_IN_AUDIENCE)
        assert [c.gate for c in verdict.explain][:2] == ["enabled", "audience"]
    assert planned(campaign(), user()).explain[1].gate == "consent", "asked of no campaign that is for everyone"


# NOW is 04:04 in Oslo, and 21:04 of the evening before in Chicago
NIGHT = QuietHours("22:00", "07:00")
ALL = Limits([Cap(3, hours=24), Cap(1, "day", category="lifecycle")], 60, NIGHT, 3)
SAME = Past("m0", NOW - 2 * DAY_MS, "news", content_key(campaign(), "Hi", "Welcome to activated"))
AWAKE = user(timezone="America/Chicago")
FORGOTTEN = [Past(f"m{n}", NOW - 9 * DAY_MS - n, "news", "k") for n in range(3)]


def test_every_limit_that_is_declared_is_asked_in_its_order() -> None:
    verdict = planned(campaign(no_repeat_days=7), AWAKE, limits=ALL)
    assert isinstance(verdict, Send)
    asked = ["caps", "gap", "repeat", "quiet_hours", "sunset"]
    assert [check.gate for check in verdict.explain][-6:] == ["holdout", *asked]
    assert (verdict.counts, verdict.zone) == (True, "America/Chicago")


@pytest.mark.parametrize(
    ("who", "past", "reason"),
    [
        (USER, [Past("m1", NOW - 1, "lifecycle", SAME.content_key), *FORGOTTEN], Reason.CAP),
        (USER, [Past("m1", PENDING, "lifecycle", SAME.content_key), *FORGOTTEN], Reason.CAP),
        (USER, [Past("m1", NOW - 1, "news", SAME.content_key), *FORGOTTEN], Reason.GAP),
        (USER, [SAME, *FORGOTTEN], Reason.REPEAT),
        (USER, FORGOTTEN, Reason.QUIET_HOURS),
        (AWAKE, FORGOTTEN, Reason.SUNSET),
    ],
)
def test_the_first_limit_that_is_reached_gives_the_reason(who: Recipient, past: list[Past], reason: Reason) -> None:
    """Each case also fails every later one; the night would be too long for a campaign that is fresh for an hour."""
    verdict = planned(campaign(no_repeat_days=7), who, limits=ALL, past=past)
    assert isinstance(verdict, Suppress)
    assert (verdict.reason, verdict.explain[-1].reason) == (reason, reason)


def test_nothing_but_consent_and_truth_binds_a_safety_campaign() -> None:
    past = [Past(f"m{n}", NOW - n, "lifecycle", SAME.content_key) for n in range(9)]
    verdict = planned(campaign(safety=True), limits=ALL, past=past)
    assert isinstance(verdict, Send)
    assert (verdict.counts, verdict.zone, verdict.explain[-1].gate) == (False, "", "holdout")
    refused = planned(campaign(safety=True), user(push_consent=False), limits=ALL)
    assert isinstance(refused, Suppress)
    assert refused.reason is Reason.NO_CONSENT


def test_what_answers_its_user_comes_at_any_hour_and_still_counts() -> None:
    verdict = planned(campaign(any_hour=True), limits=msgspec.structs.replace(ALL, sunset_pushes=0))
    assert isinstance(verdict, Send), "it is 04:04 in Oslo"
    assert (verdict.counts, verdict.zone) == (True, "")
    assert "quiet_hours" not in {check.gate for check in verdict.explain}


@pytest.mark.parametrize(
    ("fresh_hours", "valid_hours", "waits"), [(3, None, True), (2, None, False), (3, 3, True), (3, 2, False)]
)
def test_a_push_waits_for_the_morning_where_it_will_still_be_true(
    fresh_hours: int, valid_hours: int | None, waits: bool
) -> None:
    """It is 04:04 in Oslo; at 07:00 a forecast of the night is stale."""
    what = occurrence(valid_ms=None if valid_hours is None else valid_hours * 3_600_000)
    verdict = planned(campaign(freshness_seconds=fresh_hours * 3600), what=what, limits=Limits(quiet_hours=NIGHT))
    if waits:
        assert isinstance(verdict, Defer)
        assert 0 < verdict.until - NOW < 3 * 3_600_000
        assert verdict.until % 3_600_000 == 0
    else:
        assert isinstance(verdict, Suppress)
        assert verdict.reason is Reason.QUIET_HOURS


@given(
    st.sampled_from(
        ["America/New_York", "America/Chicago", "America/Phoenix", "America/Anchorage", "Pacific/Honolulu"]
    ),
    st.integers(1_767_225_600_000, 1_798_761_600_000),
    st.booleans(),
)
def test_at_any_moment_of_a_year_a_push_goes_out_by_day_or_waits_once(zone: str, now: int, safety: bool) -> None:
    c, who, what = campaign(safety=safety, freshness_seconds=86_400), user(timezone=zone), Occurrence("o1", now)
    c = msgspec.structs.replace(c, templates={"en": Template("Hi", "You")})

    def asked(at: int) -> Verdict:
        return plan(c, who, what, at, "salt", compile_templates(c), limits=Limits(quiet_hours=NIGHT))

    verdict = asked(now)
    hour = datetime.fromtimestamp(now / 1000, UTC).astimezone(ZoneInfo(zone)).hour
    if safety or 7 <= hour < 22:
        assert isinstance(verdict, Send)
    else:
        assert isinstance(verdict, Defer)
        assert isinstance(asked(verdict.until), Send)
        assert isinstance(asked(verdict.until - 1), Defer)


def test_who_is_held_out_is_drawn_before_limits_are_asked() -> None:
    """Those held out are pushed to less: what depends on earlier pushes must not sort them from the others."""
    verdict = planned(campaign(holdout_percent=100.0), limits=ALL, past=FORGOTTEN)
    assert isinstance(verdict, HeldOut)


def test_who_is_held_out_would_have_been_sent() -> None:
    verdict = planned(campaign(holdout_percent=100.0))
    assert isinstance(verdict, HeldOut)
    assert [check.gate for check in verdict.explain if not check.passed] == ["holdout"]


@pytest.mark.parametrize(
    ("ttl", "valid_ms", "expected"), [(600, None, 600), (600, 90_999, 90), (600, 10**9, 600), (600, 999, 0)]
)
def test_a_push_lives_no_longer_than_its_occurrence(ttl: int, valid_ms: int | None, expected: int) -> None:
    """0 means now or never: rounding up would show an alert after its end."""
    verdict = planned(campaign(ttl_seconds=ttl), what=occurrence(valid_ms=valid_ms))
    assert isinstance(verdict, Send)
    assert verdict.ttl_seconds == expected
    assert verdict.expires_at == NOW + expected * 1000


USERS = st.builds(
    lambda devices, consent, stage, name: user(
        devices=devices, push_consent=consent, stage=stage, user_id=name, assignment_id=name
    ),
    st.sampled_from([(), (PHONE,), (PHONE, TABLET)]),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, "activated", "silent"]),
    st.text(min_size=1, max_size=8),
)
CAMPAIGNS = st.builds(
    lambda safety, percent, on, ttl: campaign(safety=safety, holdout_percent=percent, enabled=on, ttl_seconds=ttl),
    st.booleans(),
    st.sampled_from([0.0, 0.01, 50.0, 100.0]),
    st.booleans(),
    st.integers(0, 10**6),
)
OCCURRENCES = st.builds(occurrence, st.integers(-(10**7), 10**7), st.none() | st.integers(-(10**6), 10**8))


@given(CAMPAIGNS, USERS, OCCURRENCES, st.booleans())
def test_the_laws_of_every_plan(c: Campaign, who: Recipient, what: Occurrence, required: bool) -> None:
    verdict = planned(c, who, what, required)
    assert verdict == planned(c, who, what, required), "the same inputs decide alike"
    if isinstance(verdict, HeldOut):
        assert not c.safety
    if isinstance(verdict, Suppress):
        assert verdict.explain[-1].reason is verdict.reason
    else:
        assert c.enabled
        assert who.push_consent is not False
        assert who.push_consent or not required
        assert who.devices
        age_ms = NOW - what.occurred_at
        assert age_ms <= c.freshness_seconds * 1000
        assert what.valid_until is None or what.valid_until > NOW
    if isinstance(verdict, Send):
        assert verdict.device == who.devices[-1]
        assert 0 <= verdict.ttl_seconds <= c.ttl_seconds
        assert what.valid_until is None or verdict.expires_at <= what.valid_until


@given(st.text(), st.text(), st.text())
def test_a_collapse_id_fits_apple_and_tells_occurrences_apart(campaign_id: str, one: str, other: str) -> None:
    c = Campaign(campaign_id, "t", StageTrigger([]), {})
    ids = [collapse_id_of(c, Occurrence(name, NOW)) for name in (one, other)]
    assert all(len(i.encode()) <= MAX_COLLAPSE_BYTES and i.isascii() for i in ids)
    if one and other:
        assert (ids[0] == ids[1]) is (one == other)


def test_a_later_message_of_the_same_chain_replaces_the_first_on_screen() -> None:
    """Two revisions of an alert are two messages, shown as one."""
    c = campaign()
    one, two = Occurrence("chain/1", NOW, collapse="chain"), Occurrence("chain/2", NOW, collapse="chain")
    first, second = planned(c, what=one), planned(c, what=two)
    assert isinstance(first, Send)
    assert isinstance(second, Send)
    assert first.message_id != second.message_id
    assert first.collapse_id == second.collapse_id


def test_a_text_is_made_once_for_all_who_are_told_the_same_in_one_language() -> None:
    """Unless it names the user, or whether the city is theirs: what one is told must not reach another."""
    french = msgspec.structs.replace(USER, user_id="u2", locale="fr")
    silent = msgspec.structs.replace(USER, user_id="u3", stage="silent")
    here = msgspec.structs.replace(USER, user_id="u4", default_city=7)
    city = "{% if city.theirs %}yours{% else %}not yours{% endif %}"
    for body, told, made in (
        ("To {{ change.to }}", ["To activated", "Oui", "To activated", "To activated"], 3),
        ("{{ user.stage }}", ["activated", "Oui", "silent", "activated"], 0),
        (city, ["not yours", "Oui", "not yours", "yours"], 3),
    ):
        c = campaign(body)
        c = msgspec.structs.replace(c, templates=c.templates | {"fr": Template("Salut", "Oui")})
        compiled, texts = compile_templates(c), dict[Any, Any]()
        one = msgspec.structs.replace(occurrence(), variables=occurrence().variables | {"city": {"id": 7}})
        found = [plan(c, user, one, NOW, "salt", compiled, texts=texts) for user in (USER, french, silent, here)]
        assert [verdict.body for verdict in found if isinstance(verdict, Send)] == told
        assert len(texts) == made
        texts |= dict.fromkeys(texts, Rendered("Made", "before"))
        again = plan(c, USER, one, NOW, "salt", compiled, texts=texts)
        assert isinstance(again, Send) and again.body == ("before" if made else told[0])
