"""What single events and moments make of a user: the cases a product manager would ask about."""

from __future__ import annotations

import msgspec
import pytest

from services.segmenter.domain.state import CUSTOMER, LOYAL, REPEAT, told_consents
from services.segmenter.domain.visited import visits
from shared.contracts.events import Context, Device
from shared.contracts.rules import Privacy
from tests.support.people import (
    BOSTON,
    CHICAGO,
    DAY,
    HOUR,
    MINUTE,
    NEW_YORK,
    T0,
    Person,
    event,
    in_force,
    kinds,
    weather,
    with_days,
)


def test_the_first_opening_makes_a_new_user_who_is_acquired() -> None:
    changes = Person().see(event("Application Opened", T0))
    assert kinds(changes) == [
        ("stage_changed", "reach"),
        ("activity_changed", "new"),
        ("session_began", (None, None)),
        ("stage_changed", "acquire"),
        ("segment_entered", "active_30d"),
        ("segment_entered", "newcomers"),
    ]
    assert changes[0].payload["from"] is None
    assert changes[1].payload["from"] is None


def test_whom_only_the_server_has_met_is_inactive_and_then_new() -> None:
    """`identify` is bookkeeping: a user is a newcomer from the first thing they do."""
    person = Person()
    assert ("activity_changed", "inactive") in kinds(person.see(event("$identify", T0)))
    assert person.state.due_at == -1
    assert ("activity_changed", "new") in kinds(person.see(event("Application Opened", T0 + 100 * DAY)))


@pytest.mark.parametrize(
    "name",
    ["Push Notification Received", "Application Backgrounded", "Consent Preference Updated", "$identify", "$group"],
)
def test_what_the_phone_does_by_itself_is_not_activity(name: str) -> None:
    person = Person().all([event("Application Opened", T0)])
    person.see(event(name, T0 + 10 * DAY))
    assert person.state.last_activity_at == T0
    assert person.state.last_seen_at == T0 + 10 * DAY


@pytest.mark.parametrize(
    "name", ["Application Opened", "Screen Viewed", "$page", "Push Notification Tapped", "Anything Else"]
)
def test_what_a_person_does_is_activity(name: str) -> None:
    person = Person().all([event("Application Opened", T0), event(name, T0 + 10 * DAY)])
    assert person.state.last_activity_at == T0 + 10 * DAY


def test_a_life_without_a_word_passes_through_every_pulse_at_its_moment() -> None:
    person = Person().all([event("Application Opened", T0)])
    person.tick(T0 + 400 * DAY)
    pulse = [
        (c.payload["to"], (c.occurred_at - T0) // DAY, c.cause_type)
        for c in person.changes
        if c.kind == "activity_changed"
    ]
    assert pulse == [
        ("new", 0, "event"), ("active", 7, "tick"), ("at_risk", 14, "tick"), ("inactive", 30, "tick"), ("lapsed", 90, "tick"),
    ]  # fmt: skip
    assert person.state.due_at == -1


def test_who_returns_is_reactivated_and_settles_after_two_weeks() -> None:
    person = Person().all([event("Application Opened", T0), event("Application Opened", T0 + 40 * DAY)])
    assert person.state.activity == "reactivated"
    person.see(event("Application Opened", T0 + 50 * DAY))
    assert person.state.activity == "reactivated"
    person.tick(T0 + 54 * DAY)
    assert person.state.activity == "active"


def test_an_uninstall_counts_until_something_is_done_after_it() -> None:
    person = Person().all([event("Application Opened", T0), event("Application Uninstalled", T0 + DAY)])
    assert person.state.activity == "uninstalled"
    assert person.state.segments == ("inactive_30d",)
    person.see(event("Screen Viewed", T0 + HOUR, received=T0 + 2 * DAY))
    assert person.state.activity == "uninstalled"
    person.see(event("Application Opened", T0 + 3 * DAY))
    assert person.state.activity == "reactivated"


def test_an_uninstall_from_before_the_last_activity_changes_nothing() -> None:
    person = Person().all([event("Application Opened", T0 + DAY)])
    person.see(event("Application Uninstalled", T0, received=T0 + 2 * DAY))
    assert person.state.activity == "new"


@pytest.mark.parametrize(
    ("age_days", "activity"), [(1, "reactivated"), (13, "reactivated"), (29, "at_risk"), (31, "inactive")]
)
def test_a_late_upload_revives_only_if_it_is_young_enough(age_days: int, activity: str) -> None:
    """It is judged by when it happened: one older than thirty days proves no recent activity."""
    person = Person().all([event("Application Opened", T0)])
    person.tick(T0 + 80 * DAY)
    person.see(event("Application Opened", T0 + (80 - age_days) * DAY, received=T0 + 80 * DAY))
    assert person.state.activity == activity


def test_whoever_is_imported_from_long_ago_has_lapsed_already() -> None:
    person = Person()
    changes = person.see(event("Application Opened", T0, received=T0 + 200 * DAY))
    assert person.state.activity == "lapsed"
    assert [c.payload["to"] for c in changes if c.kind == "activity_changed"] == [
        "new",
        "active",
        "at_risk",
        "inactive",
        "lapsed",
    ]


def test_three_days_make_a_regular_and_a_customer_is_one_with_a_city() -> None:
    person = Person().all([event("Application Opened", T0)])
    assert person.state.flags == 0
    person.see(event("City Added", T0 + MINUTE, city=NEW_YORK))
    assert (person.state.stage, person.state.flags) == ("convert", CUSTOMER)
    person.see(event("Application Opened", T0 + DAY))
    assert person.state.flags == CUSTOMER | REPEAT
    person.see(event("Application Opened", T0 + 2 * DAY))
    assert person.state.stage == "retain"
    person.all([event("Application Opened", T0 + n * DAY) for n in range(3, 10)])
    assert (person.state.stage, person.state.flags) == ("loyal", CUSTOMER | REPEAT | LOYAL)


def test_who_gives_the_city_up_is_no_customer_but_keeps_the_stage() -> None:
    person = Person().all([event("Application Opened", T0), event("City Added", T0, city=NEW_YORK)])
    person.see(event("City Removed", T0 + HOUR, city=NEW_YORK))
    assert (person.state.stage, person.state.flags) == ("convert", 0)


def test_a_search_is_forgotten_thirty_days_after_the_last_one() -> None:
    """Also of a user who goes on using the app for other things."""
    person = Person().all(
        [
            event("City Searched", T0, city=NEW_YORK),
            event("City Searched", T0 + 5 * DAY, city=NEW_YORK),
            event("Application Opened", T0 + 33 * DAY),
        ]
    )
    assert not [c for c in person.tick(T0 + 35 * DAY - 1) if c.kind == "cohort_exited"]
    assert person.state.due_at == T0 + 35 * DAY
    gone = [c for c in person.tick(T0 + 36 * DAY) if c.kind == "cohort_exited"]
    assert [(c.payload, c.occurred_at) for c in gone] == [
        ({"relation": "searched", "city_id": NEW_YORK}, T0 + 35 * DAY)
    ]


def test_withdrawn_consent_leaves_the_cohorts_and_stops_recording() -> None:
    person = Person().all(
        [
            event("Default City Set", T0, city=NEW_YORK),
            event("City Added", T0, city=CHICAGO),
            event("City Searched", T0, city=BOSTON),
        ]
    )
    told = person.see(event("Consent Preference Updated", T0 + HOUR, properties={"categories": {"location": False}}))
    assert [k for k in kinds(told) if k[0] == "cohort_exited"] == [
        ("cohort_exited", ("default", NEW_YORK)), ("cohort_exited", ("added", CHICAGO)), ("cohort_exited", ("searched", BOSTON)),
    ]  # fmt: skip
    assert kinds(person.see(event("City Added", T0 + 2 * HOUR, city=BOSTON))) == [("session_began", (None, None))]
    person.see(event("Consent Preference Updated", T0 + 3 * HOUR, properties={"categories": {"location": True}}))
    told = person.see(event("City Added", T0 + 4 * HOUR, city=BOSTON))
    assert kinds(c for c in told if c.kind.startswith("cohort")) == [("cohort_entered", ("added", BOSTON))]


def test_withdrawn_search_history_keeps_the_cities_that_were_chosen() -> None:
    person = Person().all([event("City Added", T0, city=CHICAGO), event("City Searched", T0, city=BOSTON)])
    person.see(event("Consent Preference Updated", T0, properties={"categories": {"search_history": False}}))
    assert not person.state.searched
    assert [v.city_id for v in visits(person.state.added)] == [CHICAGO]
    assert not kinds(person.see(event("City Searched", T0 + MINUTE, city=BOSTON)))


def test_a_pack_may_require_that_consent_was_given() -> None:
    strict = msgspec.structs.replace(weather(), privacy=Privacy(consent=["location"]))
    person = Person(in_force((0, strict)))
    assert not [k for k in kinds(person.see(event("City Added", T0, city=BOSTON))) if k[0] == "cohort_entered"]
    person.see(event("Consent Preference Updated", T0, properties={"categories": {"location": True}}))
    assert ("cohort_entered", ("added", BOSTON)) in kinds(person.see(event("City Added", T0, city=BOSTON)))


@pytest.mark.parametrize("told", [None, [], "location", {"location": "no"}, {"marketing": False}, {}])
def test_consents_nobody_can_read_change_nothing(told: object) -> None:
    person = Person().all([event("City Added", T0, city=BOSTON)])
    assert not person.see(event("Consent Preference Updated", T0, properties={"categories": told}))
    assert told_consents(person.state.consents) == {}


def test_a_device_is_told_before_the_change_it_may_be_pushed_for() -> None:
    """The notifier folds row by row: a welcome that comes before its device would find nobody to send it to."""
    phone = Context(Device("d", "ios", "t"), "en")
    told = [c.kind for c in Person().see(event("Application Opened", T0, context=phone))]
    acquired = [n for n, kind in enumerate(told) if kind == "stage_changed"][-1]
    assert told.index("device_set") < acquired


def test_the_same_context_again_is_not_told_again() -> None:
    phone = Context(Device("d", "ios", "t"), "en")
    person = Person().all([event("Application Opened", T0, context=phone)])
    assert not person.see(event("Application Opened", T0 + 1, context=phone))
    assert [c.kind for c in person.see(event("Screen Viewed", T0 + 2, context=Context(phone.device, "es")))] == [
        "profile_set"
    ]


def test_the_channel_that_brought_a_user_is_kept_beside_the_latest() -> None:
    person = Person()
    for source in ("mail", "search", None):
        person.see(event("Application Opened", T0, context=Context(campaign=source)))
    assert (person.state.first_channel, person.state.last_channel) == ("mail", "search")


def test_a_tap_names_the_message_it_opened() -> None:
    person = Person()
    opened = [
        c.payload
        for message_id in ("2601-abc", 7, None)
        for c in person.see(event("Push Notification Tapped", T0, properties={"message_id": message_id}))
        if c.kind == "opened"
    ]
    assert opened == [{"message_id": "2601-abc"}]


def test_new_rules_are_entered_at_the_moment_the_shard_did() -> None:
    """A user noticed a month later still changes at that moment, with the version as cause."""
    person = Person(in_force((0, weather())))
    person.all([event("Application Opened", T0)])
    since = T0 + 2 * DAY
    person.rules = in_force((0, weather()), (since, with_days(new=1, at_risk=14)))
    changes = person.tick(T0 + 3 * DAY)
    assert kinds(changes)[0] == ("activity_changed", "active")
    assert person.state.rules_version == 2


def test_a_stage_the_rules_no_longer_know_begins_again() -> None:
    person = Person().all([event("Application Opened", T0)])
    shorter = msgspec.structs.replace(weather(), stages=[weather().stages[0], *weather().stages[2:]])
    person.rules = in_force((0, weather()), (T0 + DAY, shorter))
    assert ("stage_changed", "reach") in kinds(person.tick(T0 + DAY))


def test_a_session_is_told_with_the_depth_of_the_one_it_ends() -> None:
    """What was held out for is measured by it; a history that is imported measures nothing."""
    person = Person()
    told = [
        c.payload
        for at, mode in ((T0 - DAY, "import"), (T0, "live"), (T0 + MINUTE, "live"), (T0 + HOUR, "live"))
        for c in person.see(event("Screen Viewed", at, mode=mode))
        if c.kind == "session_began"
    ]
    assert told == [
        {"ended_began_at": T0 - DAY, "ended_screens": 1},
        {"ended_began_at": T0, "ended_screens": 2},
    ]


def test_sessions_are_told_only_where_users_are_held_out() -> None:
    rules = msgspec.structs.replace(
        weather(), campaigns=[msgspec.structs.replace(c, holdout_percent=0.0) for c in weather().campaigns]
    )
    person = Person(in_force((0, rules)))
    assert "session_began" not in [c.kind for c in person.see(event("Application Opened", T0))]
