"""The oracle finds nothing where alerts told whom they should, and each defect planted in the product's own code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from services.demo.weather import feed
from services.notifier import alert_chains, pipeline, runs
from services.notifier.context import handler
from services.notifier.domain import alert_chain, gates, plan
from services.notifier.domain.alert_chain import Step
from services.notifier.domain.gates import Check
from services.notifier.domain.recipient import device_for
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
    told = {(m["user_id"], m["occurrence"], m["action"], m["sound"], m["reason"]) for m in world.messages.values()}
    assert told == {
        ("anna", "a#a", "show", True, ""),
        ("anna", "a#d", "retract", False, ""),
        # both storms reached this one before they were known to be one; then one speaks for both, and the other goes
        ("bert", "a#a", "show", True, ""),
        ("bert", "b#b", "show", True, ""),
        ("bert", "b#c", "replace", False, ""),
        ("bert", "a#c", "retract", False, ""),
        ("bert", "b#d", "replace", False, ""),
        ("cleo", "b#b", "show", True, ""),
        ("dora", "a#c", "show", True, "no_device"),
        ("emil", "a#c", "show", True, "no_consent"),
        ("hans", "a#d", "show", True, ""),
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
    """As it comes, and again with half of it under other ids that replace the first ones: some with the same words, some
    with others, some to take them back."""
    world = Alerts(weather(), monkeypatch)
    now = world.clock.now
    told = feed(now)
    cities = sorted({c for code in _codes(told) for c in load().by_same(code)})
    for number, city in enumerate(cities[:: max(1, len(cities) // 60)]):
        world.user(f"u{number}", ("default", city), ("added", cities[number]))
    world.post(told)
    world.work()
    for number, feature in enumerate(told["features"][::2]):
        properties = feature["properties"]
        if number % 3 == 1:
            properties["headline"] = f"Still: {properties['headline']}"
        elif number % 3 == 2:
            properties["messageType"] = "Cancel"
        properties["references"] = [{"identifier": properties["id"], "sent": properties["sent"]}]
        properties["id"] += ".again"
    world.user("late", ("default", cities[-1]))
    world.post(told)
    world.work()
    assert oracle_alerts.check(world.snapshot()) == []
    assert {m["action"] for m in world.messages.values()} == {"show", "replace", "retract"}
    assert len(world.messages) > 30 and len({row["chain_id"] for row in world.chains.values()}) < len(world.chains)


def _codes(told: dict[str, Any]) -> set[str]:
    return {code for feature in told["features"] for code in feature["properties"]["geocode"]["SAME"]}


Defect = Callable[[pytest.MonkeyPatch], None]


def a_member_is_left_out(patch: pytest.MonkeyPatch) -> None:
    cities = alert_chain.cities_of
    patch.setattr(pipeline, "cities_of", lambda who, *those: () if who.user_id == "cleo" else cities(who, *those))


def one_who_left_is_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pipeline, "cities_of", lambda *_: (BOSTON, CHICAGO, NEW_YORK))


def joined_chains_stay_two(patch: pytest.MonkeyPatch) -> None:
    load = alert_chains.load

    async def alone(*those: Any) -> Any:
        found = await load(*those)
        return {name: chain._replace(names={chain.root: chain.names[chain.root]}) for name, chain in found.items()}

    patch.setattr(alert_chains, "load", alone)


def what_is_replaced_stays_in_force(patch: pytest.MonkeyPatch) -> None:
    execute = Alerts.execute

    async def without(self: Alerts, query: str, *values: Any) -> None:
        if query != handler._REPLACE:
            await execute(self, query, *values)

    patch.setattr(Alerts, "execute", without)


def every_update_sounds(patch: pytest.MonkeyPatch) -> None:
    follow = alert_chain.follow

    def loud(*those: Any) -> Step:
        step = follow(*those)
        return msgspec.structs.replace(step, sound=step.action is not None)

    patch.setattr(alert_chain, "follow", loud)


def nothing_is_taken_away(patch: pytest.MonkeyPatch) -> None:
    steps = alert_chain.updates
    patch.setattr(pipeline, "updates", lambda *those: [u for u in steps(*those) if u.step.action != "retract"])


def consent_is_not_asked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gates, "consent", lambda *_: Check("consent", True, {}))


def each_alert_has_its_own_collapse_id(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan, "collapse_id_of", lambda _, occurrence: f"severe_alert.{occurrence.valid_until}")


def alerts_live_longer_than_they_say(patch: pytest.MonkeyPatch) -> None:
    occurrence = Runs.moved_on

    def longer(*those: Any) -> Any:
        one = occurrence(*those)
        return msgspec.structs.replace(one, valid_until=(one.valid_until or 0) + HOUR)

    patch.setattr(Runs, "moved_on", longer)


def a_page_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    expand = pipeline.Notifier._expand

    async def without(self: pipeline.Notifier, pages: list[runs.Page]) -> None:
        for page in pages:
            page.members[:] = [] if page.run.context_id == "b" else page.members
        await expand(self, pages)

    patch.setattr(pipeline.Notifier, "_expand", without)


@pytest.mark.parametrize(
    ("defect", "said"),
    [
        (a_member_is_left_out, "user cleo is in the audience of run"),
        (one_who_left_is_told, "of user gina should not be: it is a#c, show"),
        (joined_chains_stay_two, "of user cleo should not be: it is a#c, show"),
        (what_is_replaced_stays_in_force, "user anna is in the audience of run"),
        (every_update_sounds, "of user bert has sound True"),
        (nothing_is_taken_away, "was not told: retract, sound False"),
        (consent_is_not_asked, "should be ('suppressed', 'no_consent')"),
        (each_alert_has_its_own_collapse_id, "has collapse_id"),
        (alerts_live_longer_than_they_say, "has expires_at"),
        (a_page_is_forgotten, "user bert is in the audience of run"),
    ],
)
def test_a_planted_defect_is_found(defect: Defect, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    defect(monkeypatch)
    found = oracle_alerts.check(two_storms(monkeypatch).snapshot())
    assert any(said in one for one in found), found


@pytest.mark.parametrize(
    ("always", "wrong"),
    [("newest", "of a2 went to t-second, not to t-anna"), ("there", "of a3 went to t-anna, not to t-second")],
)
def test_what_goes_to_the_wrong_device_is_found(always: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change goes to the device that shows what changes, whatever comes back to the newest one."""

    def chain() -> tuple[list[str], dict[str, str]]:
        world = Alerts(weather(), monkeypatch)
        world.user("anna", ("default", CHICAGO))
        world.alert("a1", CHICAGO)
        world.work()
        world.tell("anna", "device_set", device={"id": "second", "type": "ios", "token": "t-second"})
        for name, city, before in (("a2", NEW_YORK, "a1"), ("a3", CHICAGO, "a2")):
            world.clock.now += 1000
            world.alert(name, city, replaces=[before], sent_ago=0)
            world.work()
        names = {m["message_id"]: f"of {m['occurrence'].partition('#')[2]}" for m in world.messages.values()}
        return oracle_alerts.check(world.snapshot()), names

    assert chain()[0] == []
    aim = device_for
    patched = {"newest": lambda who, _, device: aim(who, "show", device), "there": lambda who, _, d: aim(who, "", d)}
    monkeypatch.setattr(plan, "device_for", patched[always])
    found, names = chain()
    assert any(wrong in one.replace(f"message {i}", of) for one in found for i, of in names.items()), found


def test_a_message_that_was_lost_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    world = two_storms(monkeypatch)
    (lost,) = (name for name, m in world.messages.items() if m["user_id"] == "hans")
    del world.messages[lost]
    (found,) = oracle_alerts.check(world.snapshot())
    assert "user hans is in the audience of run" in found and "was not told" in found


def test_what_follows_a_message_lost_on_its_way_is_left_aside_in_its_chain_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever planned the next one may have known of the loss, or not yet."""
    world = two_storms(monkeypatch)
    world.alert("other", NEW_YORK)
    world.work()
    first = {(m["user_id"], m["occurrence"]): m for m in world.messages.values()}
    first["bert", "a#a"] |= {"state": "suppressed", "reason": "no_consent"}
    assert oracle_alerts.check(world.snapshot()) == []
    del world.messages[first["bert", "other#other"]["message_id"]]
    (found,) = oracle_alerts.check(world.snapshot())
    assert "user bert is in the audience of run" in found and "(other)" in found


def test_an_alert_that_set_nothing_going_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    world = two_storms(monkeypatch)
    name = next(name for name, run in world.runs.items() if run["context_id"] == "b")
    del world.runs[name], world.run_shards[name]
    world.pages = [page for page in world.pages if page["run_id"] != name]
    assert any("for alert b is missing" in one for one in oracle_alerts.check(world.snapshot()))
