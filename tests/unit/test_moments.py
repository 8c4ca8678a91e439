"""Which events the feed tells those who wait for them, when among the rows of an event, and what of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.segmenter.domain.moments import Awaited, awaited
from shared.contracts.events import Context, Device
from shared.contracts.rules import Campaign, EventTrigger, Rules, StageTrigger, Template
from tests.support.people import DAY, HOUR, NEW_YORK, T0, Person, event, in_force, weather

SEARCHED = EventTrigger(["City Searched"], {"country": ["US"]}, 2 * 1440, ["City Added"], ["city", "state"])


def rules(trigger: Any = SEARCHED, body: str = "{{ city.name }}", **how: Any) -> Rules:
    campaign = Campaign("c", "C", trigger, {"en": Template("Hi", body)}, **how)
    return msgspec.structs.replace(weather(), campaigns=[campaign])


def searches(person: Person, at: int = T0, **how: Any) -> list[Any]:
    return [c for c in person.see(event("City Searched", at, city=NEW_YORK, **how)) if c.kind == "moment"]


def test_a_moment_is_the_last_row_of_its_event() -> None:
    """Whoever waits for it finds the user as the event left them: with a phone, a stage, a city."""
    person = Person(in_force((0, rules())))
    phone = Context(Device("d", "ios", "t"), "en")
    changes = person.see(event("City Searched", T0, city=NEW_YORK, context=phone, message_id="m1"))
    assert [c.kind for c in changes].index("moment") == len(changes) - 1
    assert {"device_set", "activity_changed", "cohort_entered", "segment_entered"} <= {c.kind for c in changes}
    assert (changes[-1].cause_type, changes[-1].cause_id, changes[-1].occurred_at) == ("event", "m1", T0)


def test_it_tells_what_somebody_looks_at_and_nothing_else() -> None:
    """Neither what no campaign names, nor what the reader of the feed knows of the user."""
    person = Person(in_force((0, rules(body="{{ event.city }}"))))
    told = {"city": "nyc", "state": "NY", "country": "US", "device": "x", "categories": {"a": True}}
    (one,) = searches(person, properties=told, mode="replay")
    kept = {"city": "nyc", "state": "NY", "country": "US"}
    assert one.payload == {"event": "City Searched", "mode": "replay", "properties": kept, "city_id": NEW_YORK}
    (added,) = [
        c for c in person.see(event("City Added", T0 + 1, city=NEW_YORK, properties=told)) if c.kind == "moment"
    ]
    assert added.payload["properties"] == {"state": "NY"}, "what calls off is compared, and not shown"


@pytest.mark.parametrize("name", ["City Added", "City Searched"])
def test_an_event_is_told_only_where_a_campaign_in_force_waits_for_it(name: str) -> None:
    before = rules(StageTrigger(["acquire"]))
    person = Person(in_force((0, before)))
    assert "moment" not in {c.kind for c in person.see(event(name, T0, city=NEW_YORK))}
    person.rules = in_force((0, before), (T0 + HOUR, rules()))
    assert "moment" in {c.kind for c in person.see(event(name, T0 + 2 * HOUR, city=NEW_YORK))}
    assert "moment" not in {c.kind for c in person.see(event("Application Opened", T0 + 3 * HOUR))}


@pytest.mark.parametrize(
    ("withdrawn", "told"),
    [("push", ["City Searched", "City Added"]), ("search_history", ["City Added"]), ("location", [])],
)
def test_of_places_only_what_may_be_recorded_is_told(withdrawn: str, told: list[str]) -> None:
    person = Person(in_force((0, rules())))
    person.see(event("Consent Preference Updated", T0, properties={"categories": {withdrawn: False}}))
    for number, name in enumerate(("City Searched", "City Added")):
        person.see(event(name, T0 + 1000 * number, city=NEW_YORK))
    assert [c.payload["event"] for c in person.changes if c.kind == "moment"] == told


def test_a_repeat_is_not_told_again() -> None:
    person = Person(in_force((0, rules())))
    assert len(searches(person, message_id="m1")) == 1
    assert searches(person, T0 + HOUR, message_id="m1") == []


def test_history_is_not_told() -> None:
    """What is older than the delay and the freshness of every campaign together sets nothing going and calls nothing
    off: an import of years makes no rows."""
    limit = 2 * DAY + HOUR
    for age, rows in ((limit, 1), (limit + 1, 0)):
        person = Person(in_force((0, rules(freshness_seconds=3600))))
        assert len(searches(person, T0 - age, received=T0, mode="import")) == rows


def test_what_several_campaigns_ask_of_an_event_is_told_together() -> None:
    pack = weather()
    several = [
        Campaign("a", "A", SEARCHED, {"en": Template("Hi", "There")}, freshness_seconds=60),
        Campaign("b", "B", EventTrigger(["City Added"], {"city": ["x"]}), {}, freshness_seconds=4 * 86_400),
        Campaign("c", "C", StageTrigger(["acquire"]), {}),
    ]
    assert awaited(msgspec.structs.replace(pack, campaigns=several)) == {
        "City Searched": Awaited(2 * DAY + 60_000, frozenset({"country", "state"})),
        "City Added": Awaited(4 * DAY, frozenset({"city", "state"})),
    }
