"""Which rows of the feed set a campaign going, which call it off, and what its texts may then say."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from services.notifier.domain.campaign import (
    beginning,
    calls_off,
    city_facts,
    ending,
    key_of,
    known_variables,
    matches,
    occurrence_of,
)
from services.notifier.domain.gates import Reason
from services.notifier.domain.plan import Suppress, variables_of
from services.notifier.domain.template_check import analyse_campaign
from shared.contracts.events import FeedRow
from shared.contracts.rules import (
    ActivityTrigger,
    AlertTrigger,
    EventTrigger,
    SegmentExitTrigger,
    SegmentTrigger,
    StageTrigger,
    Trigger,
)
from shared.gazetteer import load as load_gazetteer
from tests.support.people import NEW_YORK, weather
from tests.unit.test_plan import NOW, USER, campaign, planned, user


def change(kind: str, source: str | None, target: str, seq: int = 1, gen: int = 1) -> FeedRow:
    return FeedRow(gen, seq, 0, "u1", kind, {"from": source, "to": target}, NOW, NOW, ("event", "m"), 7, 1)


def moment(event: str, mode: str = "live", city_id: int | None = None, **properties: Any) -> FeedRow:
    payload: dict[str, Any] = {"event": event, "mode": mode, "properties": properties}
    payload |= {"city_id": city_id} if city_id else {}
    return FeedRow(1, 1, 0, "u1", "moment", payload, NOW, NOW, ("event", f"m-{event}"), 7, 1)


def segment(what: str, name: str, at: int = NOW) -> FeedRow:
    return FeedRow(1, 1, 0, "u1", f"segment_{what}", {"segment": name}, at, NOW, ("tick", ""), -1, 1)


def consent(**given: bool) -> FeedRow:
    return FeedRow(1, 1, 0, "u1", "consent_set", dict(given), NOW, NOW, ("event", "m"), 7, 1)


@pytest.mark.parametrize(
    ("trigger", "row", "expected"),
    [
        (StageTrigger(["b"]), change("stage_changed", "a", "b"), True),
        (StageTrigger(["b"]), change("stage_changed", "a", "c"), False),
        (StageTrigger(["b"], ["a"]), change("stage_changed", "a", "b"), True),
        (StageTrigger(["b"], ["a"]), change("stage_changed", None, "b"), False),
        (StageTrigger([]), change("stage_changed", None, "z"), True),
        (StageTrigger(["active"]), change("activity_changed", "new", "active"), False),
        (ActivityTrigger(["inactive"]), change("activity_changed", "active", "inactive"), True),
        (ActivityTrigger(["inactive"], ["new"]), change("activity_changed", "active", "inactive"), False),
        (AlertTrigger(), change("stage_changed", "a", "b"), False),
        (EventTrigger(["A"]), moment("A"), True),
        (EventTrigger(["A", "B"]), moment("B"), True),
        (EventTrigger(["A"]), moment("B"), False),
        (EventTrigger(["A"]), change("stage_changed", "a", "b"), False),
        (EventTrigger(["A"]), moment("A", mode="replay"), True),
        (EventTrigger(["A"]), moment("A", mode="import"), False),
        (EventTrigger(["A"], {"size": ["s", "m"]}), moment("A", size="m"), True),
        (EventTrigger(["A"], {"size": ["s", "m"]}), moment("A", size="l"), False),
        (EventTrigger(["A"], {"size": ["s", "m"]}), moment("A"), False),
        (EventTrigger(["A"], {"size": ["s"], "count": [1, 2.5]}), moment("A", size="s", count=2.5), True),
        (EventTrigger(["A"], {"size": ["s"], "count": [1]}), moment("A", size="s", count=True), False),
        (EventTrigger(["A"], {"sale": [True]}), moment("A", sale=1), False),
        (EventTrigger(["A"], delay_minutes=5, unless=["B"], same=["size"]), moment("A", size="m"), True),
        (EventTrigger(["A"], delay_minutes=5, unless=["B"], same=["size"]), moment("A"), False),
        (EventTrigger(["A"], delay_minutes=5, unless=["B"], same=["city"]), moment("A", city="x"), False),
        (SegmentTrigger(["s"]), segment("entered", "s"), True),
        (SegmentTrigger(["s"]), segment("entered", "t"), False),
        (SegmentTrigger(["s"]), segment("exited", "s"), False),
        (SegmentExitTrigger(["s"]), segment("exited", "s"), True),
        (SegmentExitTrigger(["s"]), segment("entered", "s"), False),
        (SegmentExitTrigger(["s"]), replace(segment("exited", "s"), cause=("erase", "er-1")), False),
    ],
)
def test_a_trigger_matches_only_its_own_changes(trigger: Trigger, row: FeedRow, expected: bool) -> None:
    assert matches(trigger, row) is expected


@pytest.mark.parametrize("cause", ["event", "tick", "rules", "merge"])
def test_what_a_merge_makes_of_a_user_sets_nothing_going(cause: str) -> None:
    """Whoever signs in was welcomed under the id they had; the stage they bring along is no news."""
    moved = msgspec.structs.replace(change("stage_changed", "reach", "acquire"), cause=(cause, "m"))
    assert matches(StageTrigger(to=["acquire"]), moved) is (cause != "merge")


def test_a_change_decided_again_after_a_restore_is_the_same_message() -> None:
    """A restore raises `gen` and moves `seq`; the user must not be pushed a second time for it."""
    c = campaign()
    before = planned(c, what=occurrence_of(c.trigger, change("stage_changed", "new", "activated", seq=5, gen=1), {}))
    after = planned(c, what=occurrence_of(c.trigger, change("stage_changed", "new", "activated", seq=900, gen=2), {}))
    other = planned(c, what=occurrence_of(c.trigger, change("stage_changed", "lapsed", "activated"), {}))
    assert before.message_id == after.message_id != other.message_id


@pytest.mark.parametrize("trigger", [StageTrigger(["b"]), ActivityTrigger(["inactive"])])
def test_every_variable_promised_to_authors_is_there(trigger: Trigger) -> None:
    """Known names are checked against what a plan really hands to the template."""
    c = campaign(trigger=trigger)
    given_to_template = variables_of(c, USER, occurrence_of(trigger, change("stage_changed", None, "b"), {}))
    known = known_variables(trigger, weather())
    for path, may_be_missing in known.items():
        value: Any = given_to_template
        for part in path.split("."):
            value = value[part]
        assert may_be_missing or value is not None
    assert analyse_campaign(campaign("{{ change.to }}, {{ change.from | default: 'new' }}"), known) == []


DELAYED = EventTrigger(["A"], delay_minutes=60, unless=["B", "A"], same=["size"])
HOUR = 3_600_000


@pytest.mark.parametrize(
    ("trigger", "first", "then", "minutes", "off"),
    [
        (DELAYED, moment("A", size="m"), moment("B", size="m"), 59, True),
        (DELAYED, moment("A", size="m"), moment("B", size="m"), 0, True),
        (DELAYED, moment("A", size="m"), moment("B", size="m"), 60, False),
        (DELAYED, moment("A", size="m"), moment("B", size="m"), -1, False),
        (DELAYED, moment("A", size="m"), moment("B", size="l"), 5, False),
        (DELAYED, moment("A", size="m"), moment("B"), 5, False),
        (DELAYED, moment("A", size="m"), moment("C", size="m"), 5, False),
        (DELAYED, moment("A", size="m"), moment("A", size="m"), 5, True),
        (DELAYED, moment("A", size="m"), moment("B", "import", size="m"), 5, True),
        (DELAYED, moment("A", size="m"), segment("exited", "m"), 5, False),
        (EventTrigger(["A"], {}, 60, ["B"], ["city"]), moment("A", city_id=1), moment("B", city_id=1), 5, True),
        (EventTrigger(["A"], {}, 60, ["B"], ["city"]), moment("A", city_id=1), moment("B", city_id=2), 5, False),
        (EventTrigger(["A"], {}, 60, ["B"]), moment("A"), moment("B", city_id=2), 5, True),
        (EventTrigger(["A"], {}, 60), moment("A"), moment("B"), 5, False),
        (EventTrigger(["A"], {}, 60), moment("A"), consent(location=False), 5, False),
        (EventTrigger(["A"]), moment("A"), moment("B"), 0, False),
        (SegmentTrigger(["s"], 60), segment("entered", "s"), segment("exited", "s"), 5, True),
        (SegmentTrigger(["s"], 60), segment("entered", "s"), segment("exited", "s"), 60, False),
        (SegmentTrigger(["s", "t"], 60), segment("entered", "s"), segment("exited", "t"), 5, False),
        (SegmentExitTrigger(["s"], 60), segment("exited", "s"), segment("entered", "s"), 5, True),
        (StageTrigger(["b"]), change("stage_changed", "a", "b"), change("stage_changed", "b", "a"), 5, False),
    ],
)
def test_what_calls_an_occurrence_off(trigger: Trigger, first: FeedRow, then: FeedRow, minutes: int, off: bool) -> None:
    """By when it happened: at the first moment it counts, at the end of the delay it is too late."""
    assert matches(trigger, first)
    then = msgspec.structs.replace(then, occurred_at=NOW + minutes * 60_000)
    assert calls_off(trigger, occurrence_of(trigger, first, {}), then) is off
    assert not off or (key_of(then) in ending(trigger) and key_of(first) in beginning(trigger))


@pytest.mark.parametrize("minutes", [-5, 5, 500])
def test_whoever_withdraws_what_tells_of_places_is_told_of_none(minutes: int) -> None:
    """Whenever that was: what waits about a city, or is held until the morning, goes."""
    for trigger in (EventTrigger(["A"], {}, 60), EventTrigger(["A"])):
        facts = {"city": city_facts(load_gazetteer().get(NEW_YORK))}
        told = occurrence_of(trigger, moment("A", city_id=NEW_YORK), facts)
        for purposes, off in (({"location": False}, True), ({"search_history": False}, True), ({"push": False}, False)):
            row = msgspec.structs.replace(consent(**purposes), occurred_at=NOW + minutes * 60_000)
            assert calls_off(trigger, told, row) is off
            assert key_of(row) in ending(trigger)
    assert not calls_off(AlertTrigger(), told, consent(location=False)), "whose audience has left it"


def test_what_waited_is_fresh_from_the_end_of_its_delay() -> None:
    c = campaign(trigger=EventTrigger(["A"], delay_minutes=48 * 60), freshness_seconds=3600)
    for age, reason in ((48 * HOUR, None), (49 * HOUR, None), (49 * HOUR + 1, Reason.STALE)):
        row = msgspec.structs.replace(moment("A"), occurred_at=NOW - age)
        verdict = planned(c, what=occurrence_of(c.trigger, row, {}))
        assert (verdict.reason if isinstance(verdict, Suppress) else None) is reason


def test_an_occurrence_is_named_by_what_happened() -> None:
    """Each event once, however often it is decided; each entry once."""
    waits = EventTrigger(["City Searched"], delay_minutes=5)
    row = msgspec.structs.replace(moment("City Searched"), seq=900, gen=2, src=-1)
    ids = {occurrence_of(waits, one, {}).id for one in (moment("City Searched"), row)}
    assert ids == {"moment:City Searched:m-City Searched"}
    entries = {occurrence_of(SegmentTrigger(["s"]), segment("entered", "s", NOW + n), {}).id for n in (0, 1)}
    assert entries == {f"segment_entered:s:{NOW}", f"segment_entered:s:{NOW + 1}"}


def test_what_is_promised_to_authors_of_events_is_there() -> None:
    """A property may be missing unless the trigger asks for it; the place of a city event is always known."""
    rules = weather()
    searched = EventTrigger(["City Searched"], {"country": ["US"]}, 60, ["City Added"], ["city"])
    known = known_variables(searched, rules)
    row = moment("City Searched", city_id=NEW_YORK, country="US", city="nyc")
    facts = {"city": city_facts(load_gazetteer().get(NEW_YORK))}
    told = variables_of(campaign(), USER, occurrence_of(searched, row, facts))
    for path, may_be_missing in known.items():
        group, _, name = path.partition(".")
        value = told[group].get(name) if name else told[group]
        assert may_be_missing or value is not None, path
    assert (known["event.country"], known["event.state"], known["city.name"]) == (False, True, False)
    assert told["city"]["name"] == "New York City" and told["event"]["name"] == "City Searched"
    assert "city.name" not in known_variables(EventTrigger(["Application Opened"]), rules)
    assert told["city"]["theirs"] is False
    theirs = user(added=(NEW_YORK,))
    assert variables_of(campaign(), theirs, occurrence_of(searched, row, facts))["city"]["theirs"] is True
    mixed = known_variables(EventTrigger(["Application Opened", "City Added"]), rules)
    assert (mixed["city.name"], mixed["event.version"]) == (True, True)
    assert known_variables(SegmentTrigger(["x"]), rules)["segment.title"] is False
