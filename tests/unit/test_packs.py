"""Do the shipped packs hold, and is a wrong one told everything that is wrong with it, by file and line?"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.packs import PackError, available, diff, install_version, load_pack
from shared.contracts.rules import AlertTrigger, ScheduleTrigger, StageTrigger, Viewed, decode_rules, encode_rules

GOOD = """\
pack: tiny
title: Tiny
signals:
  open: [Application Opened]
stages:
  - id: reach
    title: Reach
  - id: acquire
    title: Acquire
    enter: {opens: 1}
rates:
  customer: {opens: 1}
  repeat: {active_days: 2}
  loyal: {active_days: 4}
"""

CAMPAIGN = """\
id: hello
title: Hello
trigger: {type: stage_changed, to: [acquire]}
templates:
  en:
    title: Hi
    body: |
      You are now
      {{ change.to }}
"""


def write(folder: Path, pack: str = GOOD, **campaigns: str) -> Path:
    (folder / "campaigns").mkdir(parents=True)
    (folder / "pack.yaml").write_text(pack)
    for name, text in campaigns.items():
        (folder / "campaigns" / f"{name}.yaml").write_text(text)
    return folder


def faults(folder: Path) -> list[tuple[str, int, str]]:
    with pytest.raises(PackError) as error:
        load_pack(folder)
    return [(Path(f.file).name, f.line, f.message) for f in error.value.faults]


@pytest.mark.parametrize("name", ["weather", "commerce", "commerce_stages"])
def test_shipped_packs_load_and_survive_json(name: str) -> None:
    rules = load_pack(name)
    assert rules.pack == name and name in available()
    assert decode_rules(encode_rules(rules)) == rules


def test_weather_speaks_the_contract() -> None:
    """Event names, and what is promised of severe alerts: never held out, default and added cities."""
    rules = load_pack("weather")
    assert rules.signals["default_city"] == ["Default City Set"]
    assert rules.signals["push_opened"] == ["Push Notification Tapped"]
    assert [s.id for s in rules.stages] == ["reach", "acquire", "convert", "retain", "loyal"]
    campaigns = {c.id: c for c in rules.campaigns}
    assert set(campaigns) == {
        "welcome", "onboarding", "searched_not_added", "win_back", "thank_you", "severe_alert", "morning_forecast",
    }  # fmt: skip
    severe = campaigns["severe_alert"]
    assert severe.safety and severe.holdout_percent == 0 and isinstance(severe.trigger, AlertTrigger)
    assert severe.trigger.relations == ["default", "added"] and severe.trigger.severity == ["Extreme", "Severe"]
    assert (campaigns["win_back"].holdout_percent, campaigns["thank_you"].holdout_percent) == (20, 10)
    assert all({"en", "es", "fr"} <= set(c.templates) for c in rules.campaigns)


def test_the_shop_speaks_the_contract() -> None:
    """Both journeys of one shop, and what is counted in it: the second pack differs in what it says itself only."""
    phases, stages = load_pack("commerce"), load_pack("commerce_stages")
    assert [s.id for s in phases.stages] == ["reach", "act", "convert", "engage"]
    assert [s.id for s in stages.stages] == ["reach", "acquire", "convert", "retain", "loyal", "advocate"]
    for name in ("signals", "segments", "rates", "activity", "intake", "privacy", "currency"):
        assert getattr(phases, name) == getattr(stages, name)
    assert phases.signals["refund"] == ["Order Refunded"] and phases.signals["view"] == ["Product Viewed"]
    assert {"order_id", "revenue", "currency", "channel"} <= set(phases.intake.properties["Order Completed"])
    assert {"undecided", "champions", "price_low", "price_high", "customers_lapsed"} <= {s.id for s in phases.segments}
    told = {c.id: c for c in stages.campaigns}
    assert {c.id for c in phases.campaigns} <= told.keys() and "loyal" in told
    assert isinstance(told["second_order"].trigger, StageTrigger) and told["second_order"].trigger.to == ["retain"]
    assert {
        "free_shipping", "guide_to_purchase", "undecided", "abandoned_wishlist", "second_order_ask", "cross_sell",
        "at_risk", "lapsed", "loyal", "feedback_request", "review_ask", "referral_ask",
    } <= {c.id for c in phases.campaigns}  # fmt: skip
    for rules in (phases, stages):
        several = {c.id: c for c in rules.campaigns}
        assert all({"en", "es", "fr"} <= set(c.templates) and c.holdout_percent == 10 for c in rules.campaigns)
        assert rules.limits.caps and rules.limits.gap_minutes and rules.limits.sunset_pushes
        assert rules.limits.quiet_hours.from_
        assert (several["feedback_request"].offer, several["feedback_request"].no_repeat_days) == ("feedback", 90)
        assert all("detractors" in several[name].audience.not_segment for name in ("review_ask", "referral_ask"))


SHOP_SEGMENT = """\
segments:
  - id: undecided
    title: Undecided
    viewed: {least: 3, days: 7}
    not_ordered_days: 7
    least: {views: 1}
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("least: 3", "least: 4", 18, "viewed.least must be 1 to 3"),
        ("days: 7}", "days: 0}", 18, "viewed.days must be 1 to 3650"),
        ("least: 3", "most: 3", 18, "there is no such field; expected least, days"),
        ("viewed: {least: 3, days: 7}", "viewed: often", 18, "segments[0].viewed: Expected"),
        ("not_ordered_days: 7", "not_ordered_days: -1", 19, "not_ordered_days must be 0 to 3650"),
        (
            "not_ordered_days: 7",
            "not_ordered_days: 7\n    ordered_days: 7",
            20,
            "expected not_ordered_days < ordered_days",
        ),
        ("least: {views: 1}", "least: {views: 3}\n    most: {views: 2}", 20, "views can never be so"),
        ("least: {views: 1}", "least: {veiws: 1}", 20, "expected one of opens"),
        ("segments:", "currency: dollars\nsegments:", 15, "currency: expected three capital letters"),
    ],
)
def test_segments_of_a_shop_that_make_no_sense(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    assert load_pack(write(tmp_path / "good", GOOD + SHOP_SEGMENT)).segments[0].viewed == Viewed(3, 7)
    found = faults(write(tmp_path / "bad", GOOD + SHOP_SEGMENT.replace(old, new)))
    assert [(f[1], says in f[2]) for f in found] == [(line, True)], found


SCHEDULE = """\
id: hello
title: Hello
trigger:
  type: schedule
  at: 07:00
  context: forecast
templates:
  en:
    title: "{{ city.name }}"
    body: "{{ forecast.summary }}"
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("at: 07:00", "at: 7 am", 5, "expected a time of day"),
        ("at: 07:00", "cron: 0 7 * *", 5, "expected five fields"),
        ("at: 07:00", "at: 07:00\n  once: 2026-12-24T18:00", 5, "one of at, cron and once"),
        ("at: 07:00", "at: 07:00\n  days: [mon, someday]", 6, "expected one of mon, tue"),
        ("at: 07:00", "at: 07:00\n  zone: Mars/Olympus", 6, "expected local, UTC or a time zone"),
        ("at: 07:00", "at: 07:00\n  until: noon", 6, "expected a time of day"),
        ("at: 07:00", "at: 07:00\n  relations: [visited]", 6, "expected one of default, searched, added"),
        ("context: forecast", "context: weather", 6, 'context: expected one of "", forecast'),
        ("context: forecast", "zone: UTC", 10, "there is no variable 'forecast.summary'"),
        ("forecast.summary", "forecast.high", 10, "may be missing"),
    ],
)
def test_schedules_that_make_no_sense(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    (campaign,) = load_pack(write(tmp_path / "good", hello=SCHEDULE)).campaigns
    assert campaign.trigger == ScheduleTrigger(at="07:00", context="forecast")
    found = faults(write(tmp_path / "bad", hello=SCHEDULE.replace(old, new)))
    assert [(f[0], f[1], says in f[2]) for f in found] == [("hello.yaml", line, True)], found


def test_a_pack_takes_from_another_what_it_does_not_say(tmp_path: Path) -> None:
    write(tmp_path / "tiny", hello=CAMPAIGN, other=CAMPAIGN.replace("id: hello", "id: other"))
    more = "extends: tiny\npack: more\nrates:\n  customer: {opens: 3}\n  repeat: {opens: 4}\n  loyal: {opens: 5}\n"
    found = load_pack(write(tmp_path / "more", more, hello=CAMPAIGN.replace("Hi", "Ho")))
    assert (found.pack, found.title, found.rates.customer) == ("more", "Tiny", {"opens": 3})
    assert [(c.id, c.templates["en"].title) for c in found.campaigns] == [("hello", "Ho"), ("other", "Hi")]


@pytest.mark.parametrize("base", ["nothing", "more", "../tiny", "''"])
def test_a_pack_that_extends_what_is_not_beside_it(tmp_path: Path, base: str) -> None:
    write(tmp_path / "tiny")
    found = faults(write(tmp_path / "more", GOOD.replace("title: Tiny", f"title: Tiny\nextends: {base}")))
    assert len(found) == 1 and found[0][:2] == ("pack.yaml", 3) and "beside this one" in found[0][2]


def test_a_fault_in_the_pack_taken_from_names_its_file(tmp_path: Path) -> None:
    write(tmp_path / "tiny", GOOD.replace("{opens: 1}\nrates", "{opens: 0}\nrates"))
    with pytest.raises(PackError) as error:
        load_pack(write(tmp_path / "more", "extends: tiny\npack: more\n"))
    assert [(Path(f.file).parent.name, f.line) for f in error.value.faults] == [("tiny", 10)]


def test_a_small_pack_loads_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "tiny", hello=CAMPAIGN)
    monkeypatch.setenv("PERENNIAL_PACKS", str(tmp_path))
    assert load_pack(folder) == load_pack(folder / "pack.yaml") == load_pack("tiny")
    assert [c.id for c in load_pack("tiny").campaigns] == ["hello"]


def test_an_unknown_pack_names_the_known_ones() -> None:
    with pytest.raises(PackError, match="commerce, commerce_stages, weather"):
        load_pack("nonsense")


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("open: [", "opne: [", 4, "signals.opne: expected one of open, screen"),
        ("open: [Application Opened]", "open: Application Opened", 4, "signals.open: Expected `array`"),
        ("open: [Application Opened]", "open: []", 4, "at least one event"),
        ("{opens: 1}\nrates", "{opnes: 1}\nrates", 10, "expected one of opens"),
        ("{opens: 1}\nrates", "{opens: many}\nrates", 10, "Expected `int`"),
        ("{opens: 1}\nrates", "{opens: 0}\nrates", 10, "at least 1"),
        ("    title: Acquire\n", "", 8, "title is missing"),
        ("id: acquire", "id: reach", 8, "taken already"),
        ("id: acquire", "id: Acquire!", 8, "expected an id"),
        ("title: Tiny", "titel: Tiny", 2, "there is no such field"),
        ("loyal: {active_days: 4}", "loyal: {}", 14, "nobody counts"),
        ("title: Tiny", "title: Tiny\ntitle: Twice", 3, "given twice"),
        ("title: Tiny", "title: [unclosed", 3, "not YAML"),
        ("title: Tiny", "title: Tiny\nactivity: {at_risk: 40}", 3, "at_risk < inactive"),
        ("title: Tiny", "title: Tiny\nsession_gap_minutes: 0", 3, "expected 1 to 1440"),
        (
            "title: Tiny",
            "title: Tiny\nsegments:\n  - id: x\n    title: X\n    stage: [lost]",
            6,
            "no stage 'lost'; expected one of reach, acquire",
        ),
        (
            "title: Tiny",
            "title: Tiny\nsegments:\n  - id: x\n    title: X\n    activity: [sleepy]",
            6,
            "expected one of new, active",
        ),
        ("title: Tiny", "title: Tiny\nsegments:\n  - {id: active_30d, title: X}", 4, "built in"),
    ],
)
def test_a_fault_names_file_line_and_what_was_expected(
    tmp_path: Path, old: str, new: str, line: int, says: str
) -> None:
    assert old in GOOD
    found = faults(write(tmp_path / "tiny", GOOD.replace(old, new, 1)))
    assert any(at == line and says in message for file, at, message in found if file == "pack.yaml"), found


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("to: [acquire]", "to: [lost]", 3, "no stage 'lost'"),
        ("type: stage_changed", "type: full_moon", 3, "expected one of stage_changed"),
        ("change.to", "change.too", 9, "there is no variable 'change.too'"),
        ("change.to", "user.stage", 9, "may be missing"),
        ("{{ change.to }}", "{{ change.to", 9, "hello"),
        ("title: Hello", "title: Hello\nholdout_percent: 101", 3, "0 to 100"),
        ("title: Hello", "title: Hello\nsafety: true\nholdout_percent: 5", 4, "safety campaign"),
        ("title: Hello", "title: Hello\nlocale: de", 5, "de"),
        ("title: Hello", "title: Hello\nttl_seconds: 99999999", 3, "four weeks"),
        ("  en:\n", "  en: text\n  fr:\n", 5, "expected a mapping"),
    ],
)
def test_a_fault_of_a_campaign_names_its_own_file(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    assert old in CAMPAIGN
    found = faults(write(tmp_path / "tiny", hello=CAMPAIGN.replace(old, new, 1)))
    assert any(at == line and says in message for file, at, message in found if file == "hello.yaml"), found


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    broken = GOOD.replace("opens: 1}\nrates", "opnes: 1}\nrates").replace("open: [", "opne: [")
    found = faults(write(tmp_path / "tiny", broken, hello=CAMPAIGN.replace("type: stage_changed", "type: x")))
    assert {(file, line) for file, line, _ in found} == {("pack.yaml", 4), ("pack.yaml", 10), ("hello.yaml", 3)}


@pytest.mark.parametrize("text", ["", "[]", "just text", "a: &a [*a]", "? [1, 2]\n: 3", "a: !!int x", "\x00", "1: 2"])
def test_nonsense_is_a_fault_not_a_crash(tmp_path: Path, text: str) -> None:
    assert faults(write(tmp_path / "tiny", text))


def test_diff_names_what_changed() -> None:
    old = load_pack("weather")
    changed = [msgspec.structs.replace(c, holdout_percent=30.0) if c.id == "win_back" else c for c in old.campaigns]
    new = msgspec.structs.replace(old, campaigns=changed, segments=old.segments[1:])
    lines = diff(old, new)
    assert "~ campaigns.win_back.holdout_percent: 20.0 → 30.0" in lines
    assert any(line.startswith("- segments.newcomers") for line in lines)
    assert diff(old, old) == []
    assert all(line.startswith("+") for line in diff(None, old))


class Control:
    """`control.rules` in memory, with the calls `install` makes, in their order."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.calls: list[str] = []

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        self.calls.append("begin")
        yield
        self.calls.append("commit")

    async def fetchrow(self, sql: str) -> dict[str, Any] | None:
        self.calls.append("read")
        return self.rows[-1] if self.rows else None

    async def execute(self, sql: str, *values: Any) -> None:
        self.calls.append("lock" if "advisory" in sql else "insert")
        if "INSERT" in sql:
            self.rows.append(dict(zip(("version", "pack", "body", "note"), values, strict=True)))


async def test_installing_makes_a_version_only_when_something_changed() -> None:
    control: Any = Control()
    weather, commerce = load_pack("weather"), load_pack("commerce")
    assert await install_version(control, weather, "first") == (1, True)
    assert control.calls == ["begin", "lock", "read", "insert", "commit"], "read under the lock"
    assert await install_version(control, weather) == (1, False)
    assert await install_version(control, commerce) == (2, True)
    assert await install_version(control, weather, "back") == (3, True), "a rollback is a new version"
    assert decode_rules(control.rows[2]["body"]) == weather
