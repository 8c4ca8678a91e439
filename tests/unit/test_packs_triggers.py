"""Is a pack's author told what is wrong with what a campaign waits for, and whom it is for, by file and line?"""

from __future__ import annotations

from pathlib import Path

import pytest

from services.packs import load_pack
from shared.contracts.rules import Audience, EventTrigger, SegmentTrigger, decode_rules, encode_rules
from tests.unit.test_packs import GOOD, faults, write

PACK = (
    GOOD.replace("signals:\n", "signals:\n  city_searched: [City Searched]\n  city_added: [City Added]\n")
    + """\
segments:
  - id: keen
    title: Keen
    least: {opens: 3}
intake:
  properties:
    City Searched: [city, country, season]
    City Added: [city, country]
    Guide Read: [topic]
"""
)
CAMPAIGN = """\
id: searched
title: Searched
trigger:
  type: event
  event: [City Searched]
  where:
    country: [US, CA]
  delay_minutes: 2880
  unless: [City Added]
  same: [city, country]
audience:
  stage: [acquire]
  segment: [keen]
  not_segment: [inactive_30d]
templates:
  en:
    title: "{{ city.name }}"
    body: "{{ event.country }} {{ event.season | default: '' }} {{ event.name }}"
"""
ENTERED = """\
id: entered
title: Entered
trigger:
  type: segment_entered
  segment: [keen]
  delay_minutes: 60
templates:
  en:
    title: "{{ segment.title }}"
    body: "{{ segment.id }}"
"""


def test_triggers_and_audience_are_read_and_survive_json(tmp_path: Path) -> None:
    rules = load_pack(write(tmp_path / "tiny", PACK, searched=CAMPAIGN, entered=ENTERED))
    entered, searched = rules.campaigns
    assert searched.trigger == EventTrigger(
        ["City Searched"], {"country": ["US", "CA"]}, 2880, ["City Added"], ["city", "country"]
    )
    assert searched.audience == Audience(["acquire"], [], ["keen"], ["inactive_30d"])
    assert (entered.trigger, entered.audience) == (SegmentTrigger(["keen"], 60), Audience())
    assert decode_rules(encode_rules(rules)) == rules


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("event: [City Searched]", "event: []", 5, "expected at least one event"),
        ("event: [City Searched]", "event: [City Serched]", 5, "no event 'City Serched' stands under signals"),
        ("  event: [City Searched]\n", "", 3, "event is missing"),
        ("unless: [City Added]", "unless: [City Aded]", 9, "no event 'City Aded' stands under signals"),
        ("  delay_minutes: 2880\n", "", 8, "expected delay_minutes beside `unless`"),
        ("delay_minutes: 2880", "delay_minutes: -1", 8, "delay_minutes must be 0 to 129600"),
        ("delay_minutes: 2880", "delay_minutes: 129601", 8, "delay_minutes must be 0 to 129600"),
        ("delay_minutes: 2880", "delay_minutes: two days", 8, "delay_minutes: Expected `int`"),
        ("  unless: [City Added]\n", "", 9, "expected `unless` beside `same`"),
        ("same: [city, country]", "same: [season]", 10, "does not list 'season' for City Added"),
        ("unless: [City Added]", "unless: [Application Opened]", 10, "Application Opened: such events name no city"),
        ("country: [US, CA]", "county: [US]", 7, "does not list 'county' for City Searched, so it is not kept"),
        ("country: [US, CA]", "country: []", 7, "expected at least one value of country"),
        ("country: [US, CA]", "country: [{a: b}]", 7, "where.country[0]: Expected `bool | int"),
        ("stage: [acquire]", "stage: [lost]", 12, "no stage 'lost'; expected one of reach, acquire"),
        ("segment: [keen]", "segment: [keener]", 13, "no segment 'keener'; expected one of keen, active_30d"),
        ("[inactive_30d]", "[gone]", 14, "no segment 'gone'"),
        ("[inactive_30d]", "[keen]", 14, "keen is asked for and refused"),
        ("stage: [acquire]", "activity: [sleepy]", 12, "expected one of new, active"),
        ("stage: [acquire]", "stages: [acquire]", 12, "there is no such field; expected stage"),
        ("title: Searched\n", "title: Searched\nany_hour: true\n", 3, "who is awake when the delay is over?"),
        (" | default: ''", "", 18, "'event.season' may be missing"),
        ("{{ event.name }}", "{{ event.topic }}", 18, "there is no variable 'event.topic'"),
        ("{{ event.name }}", "{{ change.to }}", 18, "there is no variable 'change.to'"),
    ],
)
def test_a_fault_of_an_event_campaign_names_its_line(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    assert old in CAMPAIGN
    found = faults(write(tmp_path / "tiny", PACK, searched=CAMPAIGN.replace(old, new, 1)))
    assert any((file, at) == ("searched.yaml", line) and says in message for file, at, message in found), found


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("segment: [keen]", "segment: []", 5, "expected at least one segment"),
        ("segment: [keen]", "segment: [keener]", 5, "no segment 'keener'"),
        ("delay_minutes: 60", "delay_minutes: -60", 6, "delay_minutes must be 0 to"),
        ("segment.id", "event.name", 10, "there is no variable 'event.name'"),
    ],
)
def test_a_fault_of_a_segment_campaign_names_its_line(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    found = faults(write(tmp_path / "tiny", PACK, entered=ENTERED.replace(old, new, 1)))
    assert [(file, at, says in message) for file, at, message in found] == [("entered.yaml", line, True)], found
