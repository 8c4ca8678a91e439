"""Is there what a campaign waits for, and whom it is for?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from services.packs_yaml import Place
from shared.contracts.rules import (
    Campaign,
    EventTrigger,
    Rules,
    ScheduleTrigger,
    SegmentExitTrigger,
    SegmentTrigger,
    StageTrigger,
    Trigger,
    city_events,
)

Finding = tuple[Place, str, int]

BUILT_IN_SEGMENTS = frozenset({"active_30d", "inactive_30d"})
MAX_DELAY_MINUTES = 90 * 1440


def check(campaign: Campaign, rules: Rules, place: Place) -> Iterator[Finding]:
    """What is wrong with the trigger and the audience of a campaign."""
    what, trigger, at = f"campaign {campaign.id}", campaign.trigger, (*place, "trigger")
    match trigger:
        case StageTrigger():
            yield from unknown_stages(what, trigger.to, rules, (*at, "to"))
            yield from unknown_stages(what, trigger.from_, rules, (*at, "from"))
        case SegmentTrigger() | SegmentExitTrigger():
            yield from _delay(what, trigger.delay_minutes, at)
            yield from _unknown_segments(what, trigger.segment, rules, (*at, "segment"))
            if not trigger.segment:
                yield (*at, "segment"), f"{what}: expected at least one segment", 0
        case EventTrigger():
            yield from _delay(what, trigger.delay_minutes, at)
            yield from _event(what, trigger, rules, at)
        case ScheduleTrigger():
            yield from _schedule(what, trigger, at)
    wanted, at = campaign.audience, (*place, "audience")
    yield from unknown_stages(what, wanted.stage, rules, (*at, "stage"))
    yield from _unknown_segments(what, wanted.segment, rules, (*at, "segment"))
    yield from _unknown_segments(what, wanted.not_segment, rules, (*at, "not_segment"))
    for number, segment in enumerate(wanted.not_segment):
        if segment in wanted.segment:
            yield (*at, "not_segment", number), f"{what}: {segment} is asked for and refused", 0


def delay_minutes(trigger: Trigger) -> int:
    """How long the campaign waits; 0 where its trigger knows no delay."""
    return trigger.delay_minutes if isinstance(trigger, EventTrigger | SegmentTrigger | SegmentExitTrigger) else 0


def unknown_stages(what: str, named: Iterable[str], rules: Rules, place: Place) -> Iterator[Finding]:
    stages = [stage.id for stage in rules.stages]
    for number, stage in enumerate(named):
        if stage not in stages:
            yield (*place, number), f"{what}: there is no stage {stage!r}; expected one of {', '.join(stages)}", 0


def _unknown_segments(what: str, named: Iterable[str], rules: Rules, place: Place) -> Iterator[Finding]:
    segments = [*(segment.id for segment in rules.segments), *sorted(BUILT_IN_SEGMENTS)]
    for number, segment in enumerate(named):
        if segment not in segments:
            yield (*place, number), f"{what}: there is no segment {segment!r}; expected one of {', '.join(segments)}", 0


def _delay(what: str, minutes: int, at: Place) -> Iterator[Finding]:
    if not 0 <= minutes <= MAX_DELAY_MINUTES:
        yield (*at, "delay_minutes"), f"{what}: delay_minutes must be 0 to {MAX_DELAY_MINUTES} (90 days)", 0


def _schedule(what: str, trigger: ScheduleTrigger, at: Place) -> Iterator[Finding]:
    """Faults of a schedule; which times there are is the notifier's to say."""
    from services.notifier.domain.schedule import faults

    for field, message in faults(trigger):
        yield (*at, field), f"{what}, trigger.{field}: {message}", 0


def _event(what: str, trigger: EventTrigger, rules: Rules, at: Place) -> Iterator[Finding]:
    if not trigger.event:
        yield (*at, "event"), f"{what}: expected at least one event", 0
    if trigger.unless and not trigger.delay_minutes:
        yield (*at, "unless"), f"{what}: nothing can come between; expected delay_minutes beside `unless`", 0
    if trigger.same and not trigger.unless:
        yield (*at, "same"), f"{what}: nothing is compared; expected `unless` beside `same`", 0
    known = {name for names in rules.signals.values() for name in names} | rules.intake.properties.keys()
    for field, names in (("event", trigger.event), ("unless", trigger.unless)):
        for number, name in enumerate(names):
            if name not in known:
                yield (*at, field, number), f"{what}: no event {name!r} stands under signals or intake.properties", 0
    for name, values in trigger.where.items():
        yield from _unlisted(what, name, trigger.event, rules, (*at, "where", name))
        if not values:
            yield (*at, "where", name), f"{what}: expected at least one value of {name}", 0
    for number, name in enumerate(trigger.same):
        several = [*trigger.event, *trigger.unless]
        if name != "city":
            yield from _unlisted(what, name, several, rules, (*at, "same", number))
        elif without := [event for event in several if event not in city_events(rules)]:
            yield (*at, "same", number), f"{what}: {', '.join(without)}: such events name no city", 0


def _unlisted(what: str, name: str, events: Iterable[str], rules: Rules, place: Place) -> Iterator[Finding]:
    for event in events:
        if name not in rules.intake.properties.get(event, ()):
            yield place, f"{what}: intake.properties does not list {name!r} for {event}, so it is not kept", 0
