"""At which instants does a schedule's clock show the time it waits for?

A time on the wall stands for one instant, as RFC 5545 (3.3.5) reads it: where the clock is put forward over it, as much
later as the clock is put forward (02:30 becomes 03:30); where it comes twice, the first. So every time on the wall
fires once, also where summer time begins or ends. `CronSim` is asked for times on the wall only: given a zone it lets
`*/30` pass twice what `30 1` passes once.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from services.notifier.domain.quiet_hours import clock_time
from shared.contracts.rules import ScheduleTrigger
from shared.process.clock import iso

_MARGIN = timedelta(days=1)
"""More than a clock is ever put forward or back, but for the days that were left out at the date line."""
_LEAST_APART = timedelta(hours=1)
_LOOKED_AT = 100


class Moment(NamedTuple):
    """When a schedule fires (milliseconds), and what that is called: the same for everyone whose clock shows it,
    whatever their zone, so that a user who changes zones meets each name once. `began_at` belongs to the name: it is
    alike in all zones, too."""

    at: int
    name: str
    began_at: int


def zones(trigger: ScheduleTrigger, local: frozenset[str]) -> frozenset[str]:
    """The zones to ask for moments, of those where users are."""
    return local if trigger.zone == "local" else frozenset((trigger.zone,))


def moments(trigger: ScheduleTrigger, zone: str, after_ms: int, until_ms: int) -> list[Moment]:
    """Those after `after_ms`, up to and with `until_ms`, in their order; one for an instant."""
    if trigger.once and (fixed := datetime.fromisoformat(trigger.once)).tzinfo is not None:
        at = _ms(fixed)
        return [Moment(at, iso(at), at)] if after_ms < at <= until_ms else []
    clock, found = ZoneInfo(zone), {}
    for wall in _walls(trigger, _wall(after_ms, clock) - _MARGIN, _wall(until_ms, clock) + _MARGIN):
        if after_ms < (at := _ms(wall.replace(tzinfo=clock))) <= until_ms:
            # a time that is left out comes before the one it falls together with: that one stays
            name = wall.date().isoformat() if trigger.at else wall.isoformat(timespec="minutes")
            found[at] = Moment(at, name, _ms(wall.replace(tzinfo=UTC)))
    return sorted(found.values())


def over_at(trigger: ScheduleTrigger, zone: str, at_ms: int) -> int | None:
    """When a moment's message is over because of `until`; None without."""
    if not trigger.until:
        return None
    clock = ZoneInfo(zone)
    wall = _wall(at_ms, clock)
    end = datetime.combine(wall.date(), clock_time(trigger.until))
    return _ms((end if end > wall else end + timedelta(days=1)).replace(tzinfo=clock))


def faults(trigger: ScheduleTrigger) -> Iterator[tuple[str, str]]:
    """What is wrong with a schedule: (field, message)."""
    if sum(map(bool, (trigger.at, trigger.cron, trigger.once))) != 1:
        yield "at", "expected one of at, cron and once, and only one"
    for name, told in (("at", trigger.at), ("until", trigger.until)):
        if told and not _is_clock_time(told):
            yield name, f'expected a time of day such as "07:00", not {told!r}'
    if trigger.days and not trigger.at:
        yield "days", "days go with `at`"
    if trigger.cron:
        yield from (("cron", f"{said}, not {trigger.cron!r}") for said in _cron_faults(trigger.cron))
    if trigger.once:
        try:
            datetime.fromisoformat(trigger.once)
        except ValueError:
            yield "once", f"expected an instant such as 2026-12-24T18:00:00-05:00, not {trigger.once!r}"
    if trigger.zone != "local":
        try:
            ZoneInfo(trigger.zone)
        except (KeyError, ValueError, OSError):
            yield "zone", f"expected local, UTC or a time zone such as America/New_York, not {trigger.zone!r}"
    if not trigger.relations:
        yield "relations", "expected at least one of default, searched, added: their cohorts are the audience"


def _walls(trigger: ScheduleTrigger, first: datetime, last: datetime) -> Iterator[datetime]:
    """Times on the wall between the two, without zone."""
    if trigger.once:
        wall = datetime.fromisoformat(trigger.once)
        yield from [wall] if first <= wall <= last else []
        return
    for wall in CronSim(_cron(trigger), first):
        if wall > last:
            return
        yield wall


def _cron(trigger: ScheduleTrigger) -> str:
    if trigger.cron:
        return trigger.cron
    at = clock_time(trigger.at)
    return f"{at.minute} {at.hour} * * {','.join(trigger.days) or '*'}"


def _cron_faults(cron: str) -> Iterator[str]:
    if len(cron.split()) != 5:
        yield "expected five fields (minute, hour, day, month, day of the week)"
        return
    before: datetime | None = None
    try:
        for number, wall in enumerate(CronSim(cron, datetime(2026, 1, 1))):  # noqa: DTZ001 - times on the wall
            if before is not None and wall - before < _LEAST_APART:
                yield "expected times at least an hour apart"
                return
            if number == _LOOKED_AT:
                return
            before = wall
    except CronSimError as error:
        yield f"expected a cron expression ({error})"
        return
    if before is None:
        yield "expected times that come"


def _is_clock_time(text: str) -> bool:
    try:
        clock_time(text)
    except ValueError:
        return False
    return True


def _wall(ms: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(ms / 1000, zone).replace(tzinfo=None)


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
