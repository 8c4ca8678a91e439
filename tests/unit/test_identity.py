"""Who may become part of whom, and what is remembered of it."""

from __future__ import annotations

import pytest

from services.segmenter.domain import identity
from services.segmenter.domain.state import ABSORBED, ASKED, REFUSED, Claim, Cold, Hot
from tests.support.people import T0, event


def _user(merged_into: str = "", *, known: bool = False) -> Hot:
    return Hot("reach", T0, "new", T0, T0, T0, merged_into=merged_into, known=known)


@pytest.mark.parametrize(
    ("user", "verdict"),
    [
        (None, "merge"),
        (_user(), "merge"),
        (_user("kim"), "answered"),
        (_user("somebody"), "elsewhere"),
        (_user(known=True), "known"),
    ],
)
def test_only_who_is_anonymous_becomes_part_of_another(user: Hot | None, verdict: str) -> None:
    """The first one keeps them, and whoever was identified stays who they are: so there are no chains to follow."""
    assert identity.judge(user, by="kim") == verdict


def test_an_id_is_asked_for_once() -> None:
    """Apps say who a user is at every start, also what was refused."""
    cold = identity.claim(Cold(), "kim", "a")
    assert isinstance(cold, Cold) and cold.claims == (Claim("a", ASKED),)
    for outcome in (ASKED, ABSORBED, REFUSED):
        assert identity.claim(identity.settled(cold, "a", outcome), "kim", "a") is None


@pytest.mark.parametrize("other", ["", "kim"])
def test_nobody_is_asked_for_themselves(other: str) -> None:
    assert identity.claim(Cold(), "kim", other) is None


def test_claims_are_bounded() -> None:
    """Write keys lie inside apps: whoever has one could let a row grow for ever."""
    cold = Cold(claims=tuple(Claim(f"a{n}", ABSORBED) for n in range(identity.MAX_CLAIMS)))
    assert identity.claim(cold, "kim", "one more") == "too_many"
    assert identity.claim(cold, "kim", "a7") is None


def test_a_repeat_is_known_where_it_was_posted() -> None:
    """What is passed on keeps its id; a repeat of it, also of an event from before the merge, is not passed on."""
    one, other = event("Application Opened", T0, message_id="m1"), event("Application Opened", T0, message_id="m2")
    hot, _ = identity.passed_on(_user("kim"), one, frozenset())
    assert hot is not None
    assert identity.passed_on(hot, one, frozenset()) == (None, None)
    again, _ = identity.passed_on(hot, other, frozenset())
    assert again is not None and again.merged_into == "kim"
