"""What a chain of alerts makes of a user's notification: aloud, silently, away, or nothing, and why."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notifier.domain.alert_chain import (
    InForce,
    Shown,
    Step,
    Told,
    cities_of,
    follow,
    graveness,
    look,
    updates,
    waits_for,
)
from services.notifier.domain.recipient import Recipient, device_for
from services.notifier.messages import Message
from services.notifier.succession import Succession
from shared.contracts.events import Device
from shared.contracts.rules import AlertTrigger

NOW, HOUR = 1_760_000_000_000, 3_600_000
A, B, C = 1, 2, 3
SEVERE = AlertTrigger(["Extreme", "Severe"])


def alert(name: str, *cities: int, event: str = "Tornado Warning", severity: Any = "Severe", sent: int = 0) -> InForce:
    return InForce(name, event, severity, NOW + sent, NOW + HOUR, frozenset(cities), {"event": event})


def shown_of(*alerts: InForce, cities: tuple[int, ...] = (A,), **how: Any) -> Shown:
    """What a user of these cities was shown of alerts."""
    picture = look(alerts, cities, None, AlertTrigger(), NOW)
    assert picture is not None
    first = Shown("root", "m1", "sent", "show", NOW, NOW + HOUR, "title", "body", "d", picture.told)
    return msgspec.structs.replace(first, **how)


def step(shown: Shown | None, *alerts: InForce, cities: tuple[int, ...] = (A,), now: int = NOW) -> Step:
    return follow(shown, look(alerts, cities, shown, SEVERE, now), now)


WATCH, WARNING = alert("a", A, event="Tornado Watch"), alert("b", A)


@pytest.mark.parametrize(
    ("shown", "alerts", "cities", "action", "sound", "reason"),
    [
        (None, [WARNING], (A,), "show", True, "first"),
        (None, [WARNING], (B,), None, False, "not_concerned"),
        (None, [alert("b", A, severity="Moderate")], (A,), None, False, "not_concerned"),
        (shown_of(WATCH), [WATCH], (A,), None, False, "told"),
        (shown_of(WATCH), [WARNING], (A,), "replace", True, "upgrade"),
        (shown_of(WARNING), [alert("c", A, severity="Extreme")], (A,), "replace", True, "upgrade"),
        (shown_of(WARNING), [alert("c", A)], (A,), "replace", False, "update"),
        (shown_of(WARNING), [alert("c", A, event="Tornado Watch")], (A,), "replace", False, "reduction"),
        (shown_of(WARNING), [alert("c", A, severity="Moderate")], (A,), "replace", False, "reduction"),
        (shown_of(WARNING), [alert("c", A, B)], (A, B), "replace", True, "new_city"),
        (shown_of(WARNING), [alert("c", A), alert("d", B, severity="Moderate")], (A, B), "replace", False, "update"),
        (shown_of(alert("b", A, B), cities=(A, B)), [alert("c", B)], (A, B), "replace", False, "reduction"),
        (shown_of(WARNING), [alert("c", B)], (A,), "retract", False, "over"),
        (shown_of(WARNING), [], (A,), "retract", False, "over"),
        (shown_of(WARNING, until=NOW), [], (A,), None, False, "ended"),
        (shown_of(WARNING, until=NOW), [alert("c", A)], (A,), "show", True, "again"),
        (shown_of(WARNING, until=NOW), [WARNING], (A,), None, False, "told"),
        (shown_of(WARNING, state="held"), [alert("c", A)], (A,), "show", True, "again"),
        (shown_of(WARNING, state="held"), [], (A,), None, False, "ended"),
        (shown_of(WARNING, told=None), [WARNING], (A,), None, False, "told"),
        (shown_of(WARNING, told=None), [alert("c", A, sent=1)], (A,), "replace", True, "again"),
        (shown_of(WARNING, told=None), [], (A,), "retract", False, "over"),
    ],
)
def test_what_is_done_and_why(
    shown: Shown | None, alerts: list[InForce], cities: tuple[int, ...], action: str, sound: bool, reason: str
) -> None:
    assert step(shown, *alerts, cities=cities) == Step(action, sound, reason)  # type: ignore[arg-type]


def test_what_is_sent_together_gives_back_silently_what_it_took() -> None:
    """A product in two parts: the first one's cities are without an alert until the second is read."""
    before = shown_of(alert("a", A, B), cities=(B,))
    (away,) = updates([before], "root", [alert("east", A, sent=5)], (B,), SEVERE, NOW, NOW + 5)
    assert away.step == Step("retract", False, "over") and away.told is not None
    gone = msgspec.structs.replace(before, action="retract", told=away.told)
    parts = [alert("east", A, sent=5), alert("west", B, sent=5)]
    assert step(gone, *parts, cities=(B,)) == Step("replace", False, "update")
    assert step(gone, alert("west", B, sent=6), cities=(B,)) == Step("show", True, "again")
    graver = alert("west", B, sent=5, severity="Extreme")
    assert step(gone, graver, cities=(B,)) == Step("replace", True, "upgrade")


def test_the_text_is_of_what_is_new_else_of_the_gravest_and_names_one_city_as_long_as_it_can() -> None:
    near, far = alert("near", A, severity="Extreme"), alert("far", B)
    picture = look([near, far], (A, B), shown_of(near), SEVERE, NOW)
    assert picture is not None
    assert (picture.alert, picture.city, picture.others, picture.risen) == (far, B, (A,), (B,))
    then = shown_of(near, told=picture.told)
    calm = look([near, alert("far-2", B)], (A, B), then, SEVERE, NOW)
    assert calm is not None and (calm.alert, calm.city) == (near, A), (
        "the gravest does not hold in the city named before"
    )
    both = look([alert("both", A, B)], (A, B), then, SEVERE, NOW)
    assert both is not None and both.city == B


def test_of_two_notifications_one_speaks_for_both_and_the_other_goes() -> None:
    one, other = shown_of(alert("a", A)), shown_of(alert("b", B), cities=(B,), name="other", at=NOW + 1)
    told = updates([one, other], "root", [alert("c", A, B)], (A, B), SEVERE, NOW + 2, NOW + 2)
    assert [(u.name, u.step) for u in told] == [
        ("other", Step("replace", False, "update")),
        ("root", Step("retract", False, "joined")),
    ]
    assert not told[0].needless("title", "body", NOW + HOUR), "it has the other one's to say as well"
    assert [u.step.action for u in updates([one, other], "root", [], (A, B), SEVERE, NOW, NOW)] == [
        "retract",
        "retract",
    ]
    assert updates([one, other], "root", [alert("a", A), alert("b", B)], (A, B), SEVERE, NOW, NOW) == []


def test_a_silent_update_of_the_same_words_and_end_is_none() -> None:
    (update,) = updates([shown_of(WARNING)], "root", [alert("c", A)], (A,), SEVERE, NOW, NOW)
    assert update.needless("title", "body", NOW + HOUR + 59_999)
    assert not update.needless("title", "body", NOW + HOUR + 60_000)
    assert not update.needless("title", "other", NOW + HOUR)
    (louder,) = updates([shown_of(WATCH)], "root", [WARNING], (A,), SEVERE, NOW, NOW)
    assert not louder.needless("title", "body", NOW + HOUR)


alerts = st.lists(
    st.builds(
        lambda n, cities, event, severity: alert(f"a{n}", *cities, event=event, severity=severity),
        st.integers(0, 5),
        st.sets(st.sampled_from([A, B, C]), min_size=1),
        st.sampled_from(["Tornado Warning", "Tornado Watch", "Wind Advisory"]),
        st.sampled_from(["Extreme", "Severe", "Moderate"]),
    ),
    max_size=4,
    unique_by=lambda one: one.alert_id,
)
homes = st.lists(st.sampled_from([A, B, C]), unique=True).map(tuple)


@given(alerts, alerts, homes)
def test_once_told_nothing_is_left_to_tell(before: list[InForce], now: list[InForce], cities: tuple[int, ...]) -> None:
    """Whoever walks over the audience a second time finds nothing to do: runs of one chain may overlap. What sounds is
    no less than the campaign waits for, and what is taken away stood there."""
    history: list[Shown] = []
    for alerts_now in (before, now):
        for update in updates(history, "root", alerts_now, cities, SEVERE, NOW, NOW):
            if update.step.sound:
                assert update.picture is not None and update.picture.alert.severity != "Moderate"
            assert (update.step.action == "retract") == (update.picture is None)
            history = [
                Shown("root", "m", "sent", update.step.action or "show", NOW, NOW + HOUR, "", "", "", update.told)
            ]
        assert updates(history, "root", alerts_now, cities, SEVERE, NOW, NOW) == []


def test_gravity_is_severity_and_the_last_word_of_the_event() -> None:
    order = ["Special Weather Statement", "Wind Advisory", "Tornado Watch", "TORNADO WARNING", "Flash Flood Emergency"]
    assert sorted(order, key=lambda event: graveness(event, "Severe")) == order
    assert graveness("Tornado Watch", "Extreme")[0] > graveness("Tornado Warning", "Severe")[0]
    assert waits_for(AlertTrigger(event=["Tornado Watch"]), "Tornado Watch", "Minor")
    assert not waits_for(AlertTrigger(["Severe"], ["Tornado Watch"]), "Tornado Warning", "Severe")


def test_the_default_city_is_named_first_and_only_relations_that_are_asked_for_count() -> None:
    user = Recipient("u", default_city=C, added=(A, C))
    assert cities_of(user, ("default", "added"), [B]) == (C, A, B)
    assert cities_of(user, ("added",), []) == (A, C)
    assert cities_of(user, ("default", "searched"), [C, A]) == (C, A)


def test_an_update_goes_to_the_device_that_shows_what_it_replaces() -> None:
    """What comes back after its end replaces nothing, and goes where anything else would."""
    old, new = Device("d-1", "ios", "t-1"), Device("d-2", "ios", "t-2")
    user = Recipient("u", (old, new))
    for action in ("replace", "retract"):
        assert device_for(user, action, "d-1") is old
        assert device_for(user, action, "d-gone") is new
    assert device_for(user, "show", "d-1") is new


def message(number: int, *, sound: bool, action: Any = "replace") -> Message:
    return Message(
        "2510", f"m{number}", 0, "u", "c", 1, "treated", f"a#{number}", "intent", NOW + number, collapse_id="c.a",
        chain="a", action=action, sound=sound,
    )  # fmt: skip


def test_of_one_place_the_newest_goes_out_alone_and_as_loud_as_what_it_replaces() -> None:
    line, first, second = Succession(), message(1, sound=True, action="show"), message(2, sound=False)
    line.put(first)
    assert not line.superseded(first)
    line.begins(first)
    line.put(second)
    assert line.must_wait(second), "the first is on the wire"
    first.state = "intent"
    line.ends(first)
    assert not line.must_wait(second)
    line.put(first)  # it failed, and is to be tried again
    assert line.superseded(first) and not line.superseded(second)
    assert second.sound, "nobody has heard of it yet"
    away = message(3, sound=False, action="retract")
    line.put(away)
    assert line.superseded(second) and not away.sound
    away.state = "sent"
    line.ends(away)
    assert not line.superseded(second), "nothing newer is waiting any more"


def test_told_survives_the_table() -> None:
    told = Told(("a", "b"), {A: (3, 3), B: (2, 1)}, NOW, A)
    assert msgspec.json.decode(msgspec.json.encode(told), type=Told) == told
    assert told.gravest == (3, 3)
