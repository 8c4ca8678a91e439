"""The notifier's row per user is what the feed's rows make of it, however often they come."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notifier.domain.recipient import (
    MAX_DEVICES,
    Recipient,
    decode_recipient,
    drop_token,
    encode_recipient,
    fold,
)
from shared.contracts.events import Device, FeedRow


def row(kind: str, **payload: Any) -> FeedRow:
    return FeedRow(1, 1, 0, "u1", kind, payload, 1000, 1000, ("event", "m"), 0, 1)


def folded(*rows: FeedRow) -> Recipient | None:
    recipient: Recipient | None = None
    for each in rows:
        recipient = fold(recipient, each)
    return recipient


def device(number: int, token: str | None = None) -> FeedRow:
    return row("device_set", device={"id": f"d{number}", "type": "ios", "token": token or f"t{number}"})


def tokens(recipient: Recipient | None) -> list[str]:
    assert recipient is not None
    return [d.token for d in recipient.devices]


ROWS = st.lists(
    st.one_of(
        st.builds(lambda to: row("stage_changed", **{"from": None, "to": to}), st.sampled_from(["a", "b"])),
        st.builds(lambda to: row("activity_changed", **{"from": None, "to": to}), st.sampled_from(["new", "active"])),
        st.builds(
            lambda kind, relation, city: row(kind, relation=relation, city_id=city),
            st.sampled_from(["cohort_entered", "cohort_exited"]),
            st.sampled_from(["default", "added", "searched"]),
            st.integers(1, 4),
        ),
        st.builds(device, st.integers(1, 12)),
        st.builds(lambda n: row("device_removed", device_id=f"d{n}"), st.integers(1, 12)),
        st.builds(lambda given: row("consent_set", push=given), st.booleans()),
        st.builds(lambda locale: row("profile_set", locale=locale), st.sampled_from(["en", "fr"])),
        st.builds(
            lambda kind, name: row(kind, segment=name),
            st.sampled_from(["segment_entered", "segment_exited"]),
            st.sampled_from(["a", "b"]),
        ),
        st.just(row("moment", event="x", mode="live", properties={})),
    ),
    max_size=30,
)


@given(ROWS)
def test_a_row_read_twice_changes_nothing(rows: list[FeedRow]) -> None:
    """The feed is at-least-once: the second copy returns the very same object, so nothing is written."""
    recipient: Recipient | None = None
    for each in rows:
        recipient = fold(recipient, each)
        assert fold(recipient, each) is recipient


@given(ROWS)
def test_a_row_survives_the_database(rows: list[FeedRow]) -> None:
    recipient = folded(*rows)
    if recipient is not None:
        assert decode_recipient(encode_recipient(recipient)) == recipient


@given(ROWS)
def test_a_token_is_held_once_and_devices_are_bounded(rows: list[FeedRow]) -> None:
    """Two devices with one token would be one phone pushed to twice."""
    recipient = folded(*rows)
    if recipient is not None:
        assert len(set(tokens(recipient))) == len(recipient.devices) <= MAX_DEVICES
        assert len({d.id for d in recipient.devices}) == len(recipient.devices)


def test_the_device_set_last_comes_last() -> None:
    assert tokens(folded(device(1), device(2), device(1, "new"))) == ["t2", "new"]
    assert tokens(folded(device(1), device(2, "t1"))) == ["t1"]
    assert tokens(folded(device(1), device(2), row("device_removed", device_id="d2"))) == ["t1"]


def test_leaving_the_old_default_city_does_not_undo_the_new_one() -> None:
    """Entering the new city and leaving the old one may come in either order."""
    old, new = (
        row("cohort_entered", relation="default", city_id=1),
        row("cohort_entered", relation="default", city_id=2),
    )
    left = row("cohort_exited", relation="default", city_id=1)
    for rows in ((old, new, left), (old, left, new)):
        recipient = folded(*rows)
        assert recipient is not None
        assert recipient.default_city == 2
    gone = folded(old, left)
    assert gone is not None
    assert gone.default_city is None


def test_segments_are_those_entered_and_not_left() -> None:
    rows = [row("segment_entered", segment=name) for name in ("b", "a", "c")]
    recipient = folded(*rows, row("segment_exited", segment="b"))
    assert recipient is not None
    assert recipient.segments == ("a", "c")


def test_consent_for_other_purposes_is_not_consent_to_pushes() -> None:
    recipient = folded(row("consent_set", push=False), row("consent_set", location=True))
    assert recipient is not None
    assert recipient.push_consent is False


def test_an_erased_user_leaves_no_row() -> None:
    assert folded(device(1), row("user_erased")) is None


def test_who_is_part_of_another_leaves_no_row() -> None:
    """What they leave comes behind it, and makes no new one; whoever they became part of hears of them, too, and stays."""
    merged = row("user_merged", **{"from": "u1", "to": "kim"})
    assert folded(device(1), merged, row("segment_exited", segment="s"), row("merge_sent")) is None
    other = folded(device(1), row("user_merged", **{"from": "anon", "to": "u1"}))
    assert other is not None and tokens(other) == ["t1"]


def test_holdouts_are_drawn_by_the_id_seen_first() -> None:
    recipient = folded(device(1), row("assignment_set", assignment_id="anon"))
    assert recipient is not None and recipient.assignment_id == "anon"


@pytest.mark.parametrize("kind", ["moment", "opened", "never_heard_of"])
def test_kinds_of_no_concern_make_no_row(kind: str) -> None:
    assert fold(None, row(kind)) is None


def test_only_the_dead_token_is_dropped() -> None:
    recipient = Recipient("u", devices=(Device("a", "ios", "1"), Device("b", "android", "2")))
    assert tokens(drop_token(recipient, "1")) == ["2"]
    assert drop_token(recipient, "3") is recipient
