"""The oracle finds nothing where alerts told whom they should, and each defect planted in the product's own code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from services.demo.weather import feed
from services.notifier import pipeline, planning, runs
from services.notifier.domain import gates, plan
from services.notifier.domain.gates import Check
from services.notifier.runs import Runs
from shared.gazetteer import load
from tests.support import oracle_alerts
from tests.support.miniature_alerts import HOUR, Alerts
from tests.support.people import BOSTON, CHICAGO, NEW_YORK, weather


def two_storms(patch: pytest.MonkeyPatch) -> Alerts:
    """Two alerts in two cities, then one that replaces both and reaches a third; a user leaves while a page waits."""
    world = Alerts(weather(), patch)
    world.user("anna", ("default", CHICAGO))
    world.user("bert", ("default", NEW_YORK), ("added", CHICAGO))
    world.user("cleo", ("added", NEW_YORK))
    world.user("dora", ("added", BOSTON), phone=False)
    world.user("emil", ("added", BOSTON))
    world.user("fred", ("searched", NEW_YORK))
    world.tell("emil", "consent_set", push=False)
    world.user("gina", ("default", BOSTON))
    world.alert("a", CHICAGO, sent_ago=2 * HOUR)
    world.work()
    world.alert("b", NEW_YORK)
    world.work()
    world.alert("c", CHICAGO, NEW_YORK, BOSTON, replaces=["a", "b"])
    world.hear()
    pages = world.read_pages()
    world.tell("gina", "cohort_exited", relation="default", city_id=BOSTON)
    world.hear()
    world.plan(pages)
    world.work()
    world.user("hans", ("default", NEW_YORK))
    world.alert("d", NEW_YORK, replaces=["c"])
    world.work()
    return world


def test_nothing_is_found_where_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    world = two_storms(monkeypatch)
    assert oracle_alerts.check(world.snapshot()) == []
    told = {(m["user_id"], m["occurrence"], m["state"], m["reason"]) for m in world.messages.values()}
    assert told == {
        ("anna", "a", "sent", ""),
        ("bert", "a", "sent", ""),
        ("bert", "b", "sent", ""),  # both storms reached this one before they were known to be one
        ("cleo", "b", "sent", ""),
        ("dora", "a", "suppressed", "no_device"),
        ("emil", "a", "suppressed", "no_consent"),
        ("hans", "a", "sent", ""),
    }


def test_runs_of_joined_chains_under_way_together_tell_each_user_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pages are read in one moment and planned in one commit."""
    monkeypatch.setattr(runs, "_PAGE", 2)
    world = Alerts(weather(), monkeypatch)
    for number in range(7):
        world.user(f"u{number}", *(("added", c) for c in [(NEW_YORK, BOSTON), (BOSTON, CHICAGO)][number % 2]))
    world.alert("a", NEW_YORK)
    world.alert("b", BOSTON)
    world.alert("c", BOSTON, CHICAGO, replaces=["b", "a"])
    world.work()
    assert oracle_alerts.check(world.snapshot()) == []
    assert sorted(m["user_id"] for m in world.messages.values()) == [f"u{n}" for n in range(7)]


def test_a_national_feed_is_read_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it comes, and again with half of it under other ids that replace the first ones."""
    world = Alerts(weather(), monkeypatch)
    now = world.clock.now
    told = feed(now)
    cities = sorted({c for code in _codes(told) for c in load().by_same(code)})
    for number, city in enumerate(cities[:: max(1, len(cities) // 60)]):
        world.user(f"u{number}", ("default", city), ("added", cities[number]))
    world.post(told)
    world.work()
    for feature in told["features"][::2]:
        properties = feature["properties"]
        properties["references"] = [{"identifier": properties["id"], "sent": properties["sent"]}]
        properties["id"] += ".again"
    world.user("late", ("default", cities[-1]))
    world.post(told)
    world.work()
    assert oracle_alerts.check(world.snapshot()) == []
    assert len(world.messages) > 30 and len({row["chain_id"] for row in world.chains.values()}) < len(world.chains)


def _codes(told: dict[str, Any]) -> set[str]:
    return {code for feature in told["features"] for code in feature["properties"]["geocode"]["SAME"]}


Defect = Callable[[pytest.MonkeyPatch], None]


def a_member_is_left_out(patch: pytest.MonkeyPatch) -> None:
    still = Runs.still_concerns
    patch.setattr(Runs, "still_concerns", lambda _, *those: those[2].user_id != "cleo" and still(*those))


def one_who_left_is_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Runs, "still_concerns", lambda *_: True)


def joined_chains_stay_two(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(planning, "joined_ids_of", lambda *_: ())


def consent_is_not_asked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gates, "consent", lambda *_: Check("consent", True, {}))


def each_alert_has_its_own_collapse_id(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan, "collapse_id_of", lambda _, occurrence: f"severe_alert.{occurrence.valid_until}")


def alerts_live_longer_than_they_say(patch: pytest.MonkeyPatch) -> None:
    occurrence = Runs.occurrence

    def longer(self: Runs, run: runs.Run, member: runs.Member) -> Any:
        return occurrence(self, run._replace(valid_until=(run.valid_until or 0) + HOUR), member)

    patch.setattr(Runs, "occurrence", longer)


def a_page_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    expand = pipeline.Notifier._expand

    async def without(self: pipeline.Notifier, pages: list[runs.Page]) -> None:
        for page in pages:
            page.members[:] = [] if page.run.occurrence == "b" else page.members
        await expand(self, pages)

    patch.setattr(pipeline.Notifier, "_expand", without)


@pytest.mark.parametrize(
    ("defect", "said"),
    [
        (a_member_is_left_out, "user cleo is in the audience of run"),
        (one_who_left_is_told, "its user is not in its run's audience"),
        (joined_chains_stay_two, "user cleo was told twice of chain a"),
        (consent_is_not_asked, "should be ('suppressed', 'no_consent')"),
        (each_alert_has_its_own_collapse_id, "has the collapse id"),
        (alerts_live_longer_than_they_say, "its alert at"),
        (a_page_is_forgotten, "user bert is in the audience of run"),
    ],
)
def test_a_planted_defect_is_found(defect: Defect, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    defect(monkeypatch)
    found = oracle_alerts.check(two_storms(monkeypatch).snapshot())
    assert any(said in one for one in found), found


def test_a_message_that_was_lost_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    world = two_storms(monkeypatch)
    (lost,) = (name for name, m in world.messages.items() if m["user_id"] == "hans")
    del world.messages[lost]
    (found,) = oracle_alerts.check(world.snapshot())
    assert "user hans is in the audience of run" in found and "was not told" in found


def test_an_alert_that_set_nothing_going_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    world = two_storms(monkeypatch)
    name = next(name for name, run in world.runs.items() if run["context_id"] == "b")
    del world.runs[name], world.run_shards[name]
    world.pages = [page for page in world.pages if page["run_id"] != name]
    assert any("for alert b is missing" in one for one in oracle_alerts.check(world.snapshot()))
