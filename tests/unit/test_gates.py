"""Each gate's verdict at its edge, and how holdouts are drawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notifier.domain import gates
from services.notifier.domain.campaign import Occurrence
from services.notifier.domain.gates import Reason
from services.notifier.domain.holdout import held_out
from services.notifier.domain.recipient import Recipient
from shared.contracts.events import Device
from shared.contracts.rules import Campaign, StageTrigger

NOW = 1_767_323_045_678


def campaign(**options: object) -> Campaign:
    return Campaign("c", "C", StageTrigger(["x"]), {}, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given_consent", "required", "passed"),
    [
        (None, False, True),
        (True, False, True),
        (False, False, False),
        (None, True, False),
        (True, True, True),
        (False, True, False),
    ],
)
def test_consent_is_assumed_until_withdrawn_unless_the_pack_requires_it(
    given_consent: bool | None, required: bool, passed: bool
) -> None:
    check = gates.consent(Recipient("u", push_consent=given_consent), required)
    assert (check.passed, check.reason) == (passed, Reason.NO_CONSENT)


def test_a_user_without_a_device_is_not_reachable() -> None:
    assert not gates.device(Recipient("u")).passed
    assert gates.device(Recipient("u", devices=(Device("d", "ios", "t"),))).passed


@pytest.mark.parametrize(("age_ms", "passed"), [(-5000, True), (0, True), (60_000, True), (60_001, False)])
def test_news_is_fresh_up_to_and_with_its_limit(age_ms: int, passed: bool) -> None:
    """An occurrence ahead of the clock (a phone's, or a notifier behind) is not old."""
    assert gates.freshness(campaign(freshness_seconds=60), Occurrence("o", NOW - age_ms), NOW).passed is passed


@pytest.mark.parametrize(("left_ms", "passed"), [(None, True), (1, True), (0, False), (-1, False)])
def test_an_occurrence_is_valid_before_its_end_only(left_ms: int | None, passed: bool) -> None:
    until = None if left_ms is None else NOW + left_ms
    assert gates.validity(Occurrence("o", NOW, until), NOW).passed is passed


@given(st.text(min_size=1), st.floats(0, 100))
def test_a_safety_campaign_holds_nobody_out(user: str, percent: float) -> None:
    recipient = Recipient(user, assignment_id=user)
    assert gates.holdout(campaign(safety=True, holdout_percent=percent), recipient, "salt").passed


@given(st.text(), st.floats(0, 100), st.floats(0, 100))
def test_a_growing_holdout_only_adds_users(user: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert held_out("c", "s", user, high) or not held_out("c", "s", user, low)


@given(st.text())
def test_nobody_is_held_out_at_0_and_everybody_at_100(user: str) -> None:
    assert not held_out("c", "s", user, 0)
    assert held_out("c", "s", user, 100)


def test_the_holdout_has_the_share_asked_for_and_campaigns_draw_independently() -> None:
    """10 % of 20,000: 2,000 ± 42 (one sigma); both of two campaigns: 200 ± 14. Five sigma never fail by chance,
    and the draw is fixed anyway."""
    users = [f"user-{n}" for n in range(20_000)]
    first = {u for u in users if held_out("a", "s", u, 10)}
    second = {u for u in users if held_out("b", "s", u, 10)}
    assert abs(len(first) - 2000) < 212
    assert abs(len(first & second) - 200) < 70


def test_the_user_kept_after_a_merge_keeps_their_assignment() -> None:
    """`assignment_id` draws, not `user_id`: a merge must not move anybody between the groups."""
    users = [Recipient("merged", assignment_id=f"a{n}") for n in range(200)]
    verdicts = {gates.holdout(campaign(holdout_percent=50), u, "s").passed for u in users}
    assert verdicts == {True, False}
