"""What becomes of the notification a user has of a chain of alerts, when the chain moves on?

An alert of a chain is in force until another one refers to it, or it ends; several may be at once, each for some of the
cities. A user who was told follows the chain wherever it goes; one who was not is told by what a campaign waits for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from services.notifier.domain.recipient import Recipient
from shared.contracts.rules import AlertTrigger, Severity

Action = Literal["show", "replace", "retract"]
Grave = tuple[int, int]
"""Severity and kind of event, as `graveness` tells them."""
SAME_END_MS = 60_000
"""An end that moves by less is the same to whoever reads it."""

_SEVERITIES = ("Unknown", "Minor", "Moderate", "Severe", "Extreme")
assert set(_SEVERITIES) == set(get_args(Severity))
_KINDS = ("advisory", "watch", "warning", "emergency")
"""How grave an event is by the last word of its name; any other, as in Special Weather Statement, is less."""


class InForce(msgspec.Struct, frozen=True):
    """An alert that no other has replaced; `facts` are what templates may say of it."""

    alert_id: str
    event: str
    severity: Severity
    sent_at: int
    valid_until: int
    cities: frozenset[int]
    facts: dict[str, Any] = {}


class Told(msgspec.Struct, frozen=True):
    """What a message told its user of the chain, kept with it: the alerts that held in their cities, these cities and
    how grave it was there, when the last of these alerts was sent, and which city the text named.

    A retraction keeps what was told before it, without alerts, and when that was taken back: `sent_at`."""

    alerts: tuple[str, ...]
    cities: dict[int, Grave]
    sent_at: int
    city: int

    @property
    def gravest(self) -> Grave:
        return max(self.cities.values(), default=(0, 0))


class Shown(msgspec.Struct, frozen=True):
    """The last that went out (or is about to) to the user under one name of the chain. `message_id`: what is out of
    date with the next step, if it has not gone out by then: this one, or one that is held behind it. `told` is None for
    what was put back after a restore: nothing is known but that and when it was, `at`."""

    name: str
    message_id: str
    state: str
    action: Action
    at: int
    until: int
    title: str
    body: str
    device_id: str
    told: Told | None

    def holds(self, now_ms: int) -> bool:
        """Whether the phone shows it still."""
        return self.action != "retract" and self.state != "held" and now_ms < self.until


class Picture(msgspec.Struct, frozen=True):
    """What the chain has for one user: the alert the text is of, the city it names, their others where any holds.

    `risen`: cities where it is graver than what they were told for them, and no less than a campaign waits for."""

    alert: InForce
    city: int
    others: tuple[int, ...]
    told: Told
    risen: tuple[int, ...]


class Step(msgspec.Struct, frozen=True):
    """What is to be done, if anything, and why. `sound`: the phone may make itself heard."""

    action: Action | None
    sound: bool
    reason: str


def waits_for(trigger: AlertTrigger, event: str, severity: Severity) -> bool:
    """Whether a campaign begins with such an alert. An empty list matches any."""
    return (not trigger.severity or severity in trigger.severity) and (not trigger.event or event in trigger.event)


def cities_of(recipient: Recipient, relations: Collection[str], searched: Iterable[int]) -> tuple[int, ...]:
    """The user's cities, in the order in which one is named: the default one, then those added and searched by id.

    Searches are not known to the notifier, and are those of the audience as it was read."""
    home = recipient.default_city if "default" in relations else None
    rest = {*(recipient.added if "added" in relations else ()), *searched} - {home}
    return (*(() if home is None else (home,)), *sorted(rest))


def graveness(event: str, severity: Severity) -> Grave:
    """(severity, kind of event), each the greater the graver."""
    last = event.rsplit(" ", 1)[-1].lower()
    return _SEVERITIES.index(severity), _KINDS.index(last) + 1 if last in _KINDS else 0


def _loud(alert: InForce, trigger: AlertTrigger) -> bool:
    """Whether it is no less than the least a campaign waits for, whatever its event became."""
    least = min((_SEVERITIES.index(severity) for severity in trigger.severity), default=0)
    return _SEVERITIES.index(alert.severity) >= least


def look(
    alerts: Iterable[InForce], cities: Sequence[int], shown: Shown | None, trigger: AlertTrigger, now_ms: int
) -> Picture | None:
    """What the user is to see; None where nothing holds in their cities, or only what nobody waits for.

    The text is of the gravest alert, among those that make it graver for a city than was told, where there is one. It
    names such a city; else the one named before, while that alert holds there; else the first.
    """
    holding = [one for one in alerts if now_ms < one.valid_until and not one.cities.isdisjoint(cities)]
    if not any(_goes_on(shown, one.sent_at, now_ms) or waits_for(trigger, one.event, one.severity) for one in holding):
        return None
    newest = max(one.sent_at for one in holding)
    known = shown.told if shown is not None and _goes_on(shown, newest, now_ms) else None
    before = known.cities if known is not None else {}
    covered = [city for city in cities if any(city in one.cities for one in holding)]
    raising = {
        one.alert_id: here
        for one in holding
        if _loud(one, trigger) and (here := [city for city in covered if _raises(one, city, before)])
    }
    text = max((one for one in holding if one.alert_id in raising or not raising), key=_first)
    here = raising.get(text.alert_id) or [city for city in covered if city in text.cities]
    city = known.city if known is not None and known.city in here else here[0]
    told = Told(
        tuple(sorted(one.alert_id for one in holding)),
        {
            city: _together(graveness(one.event, one.severity) for one in holding if city in one.cities)
            for city in covered
        },
        newest,
        city,
    )
    risen = tuple(city for city in covered if any(city in several for several in raising.values()))
    return Picture(text, city, tuple(other for other in covered if other != city), told, risen)


def _raises(alert: InForce, city: int, before: Mapping[int, Grave]) -> bool:
    """Whether it is graver there, in severity or in kind, than what was told."""
    was, is_ = before.get(city, (-1, -1)), graveness(alert.event, alert.severity)
    return city in alert.cities and (is_[0] > was[0] or is_[1] > was[1])


def _together(several: Iterable[Grave]) -> Grave:
    severities, kinds = zip(*several, strict=True)
    return max(severities), max(kinds)


def _goes_on(shown: Shown | None, sent_at: int, now_ms: int) -> bool:
    """Whether an alert sent then goes on with what was shown: that is there still, or was taken away by one sent no
    earlier. Of alerts that are sent together one may take away what the next one gives back."""
    if shown is None or shown.holds(now_ms):
        return shown is not None
    return shown.action == "retract" and shown.told is not None and sent_at <= shown.told.sent_at


def _first(alert: InForce) -> tuple[Any, ...]:
    return (*graveness(alert.event, alert.severity), alert.sent_at, alert.valid_until, alert.alert_id)


def follow(shown: Shown | None, picture: Picture | None, now_ms: int) -> Step:
    """What is to be done, by what the user was shown last under the chain, and what they are to see.

    It sounds: the first time (`first`); when event or severity are graver in one of their cities than what was told of
    it (`upgrade`); when it reaches another of their cities (`new_city`); when it comes back after its end or after it
    was taken away (`again`). It is silent: with any other change (`reduction`, `update`). It is taken away when nothing
    holds any more (`over`), unless it has ended by itself. What was told already is told no more.
    """
    if shown is None:
        return Step(None, False, "not_concerned") if picture is None else Step("show", True, "first")
    if picture is None:
        return Step("retract", False, "over") if shown.holds(now_ms) else Step(None, False, "ended")
    now, before = picture.told, shown.told
    if before is None:
        return Step(None, False, "told") if now.sent_at <= shown.at else Step("replace", True, "again")
    if now.alerts == before.alerts:
        return Step(None, False, "told")
    if not _goes_on(shown, now.sent_at, now_ms):
        return Step("show", True, "again")
    if picture.risen:
        return Step("replace", True, "upgrade" if before.cities.keys() >= set(picture.risen) else "new_city")
    reduced = any(now.cities.get(city, (-1, -1)) < was for city, was in before.cities.items())
    return Step("replace", False, "reduction" if reduced else "update")


class Update(NamedTuple):
    """One step for one user, under one name of the chain: what it follows, and what is kept of it with the message.

    `picture` is None for what is taken away. `alone`: it does not speak for another notification as well."""

    step: Step
    name: str
    shown: Shown | None
    told: Told | None
    picture: Picture | None
    alone: bool = True

    def needless(self, title: str, body: str, until: int) -> bool:
        """Whether it would silently say what stands there already, for as long."""
        if self.shown is None or self.step.sound or self.step.action != "replace" or not self.alone:
            return False
        same = (title, body) == (self.shown.title, self.shown.body) and self.shown.action != "retract"
        return same and abs(until - self.shown.until) < SAME_END_MS


def updates(
    history: Sequence[Shown],
    root: str,
    alerts: Iterable[InForce],
    cities: Sequence[int],
    trigger: AlertTrigger,
    now_ms: int,
    sent_at: int,
) -> list[Update]:
    """The steps for one user. `history`: what they were shown last under each name of the chain; `root` is its own
    name, for who was shown nothing; `sent_at` is the alert's that it moves on by.

    Of several notifications, which chains that became one have left, the gravest and newest is replaced, and the others
    are taken away: it speaks for all of them.
    """
    holding = [one for one in history if one.holds(now_ms)]
    main = max(holding or history, key=_weight, default=None)
    others = [one for one in holding if one is not main]
    if main is not None and holding:
        main = msgspec.structs.replace(main, told=_joined([main, *others]))
    picture = look(alerts, cities, main, trigger, now_ms)
    step = follow(main, picture, now_ms)
    if step.action is None:
        return []
    told = _taken(main, sent_at) if picture is None else picture.told
    found = [Update(step, main.name if main is not None else root, main, told, picture, not others)]
    away = Step("retract", False, step.reason if picture is None else "joined")
    return found + [Update(away, one.name, one, _taken(one, sent_at), None) for one in others]


def _weight(shown: Shown) -> tuple[Any, ...]:
    return (shown.told.gravest if shown.told is not None else (0, 0)), shown.at, shown.name


def _joined(several: Sequence[Shown]) -> Told | None:
    """What several notifications told, as one; the first names the city."""
    all_told = [one.told for one in several if one.told is not None]
    if not all_told:
        return None
    cities = {city for told in all_told for city in told.cities}
    return Told(
        tuple(sorted({alert for told in all_told for alert in told.alerts})),
        {city: _together(told.cities[city] for told in all_told if city in told.cities) for city in cities},
        max(told.sent_at for told in all_told),
        all_told[0].city,
    )


def _taken(shown: Shown | None, sent_at: int) -> Told | None:
    told = shown.told if shown is not None else None
    return msgspec.structs.replace(told, alerts=(), sent_at=sent_at) if told is not None else None
