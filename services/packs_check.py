"""Does a pack that is well-formed also make sense?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from services import packs_triggers
from services.packs_triggers import BUILT_IN_SEGMENTS, Finding, delay_minutes, unknown_stages
from services.packs_yaml import Fault, Place, Source
from shared.contracts.rules import Campaign, Measure, QuietHours, Rules, Segment

_ID = re.compile(r"[a-z][a-z0-9_]{0,63}")
_CURRENCY = re.compile(r"[A-Z]{3}")
_CLOCK_TIME = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")

MAX_TTL_SECONDS = 28 * 86_400
"""Four weeks: the longest a push provider keeps a message (FCM)."""

MAX_TOO_OLD_DAYS = 3650
MAX_SEGMENT_DAYS = 3650
MAX_VIEWS = 3
MAX_WINDOW_HOURS = 24 * 90
"""So many of a user's newest views are known by their moment."""


def check(rules: Rules, source: Source) -> list[Fault]:
    """Everything wrong with the meaning of a pack, in the order of its parts."""
    return [source.fault(place, message, below) for place, message, below in _found(rules)]


def _found(rules: Rules) -> Iterator[Finding]:
    yield from _signals(rules)
    yield from _stages(rules)
    yield from _numbers(rules)
    yield from _segments(rules)
    if not _CURRENCY.fullmatch(rules.currency):
        yield ("currency",), f"currency: expected three capital letters such as USD, not {rules.currency!r}", 0
    yield from _limits(rules)
    yield from tracking_plan(rules)
    yield from _unique("campaigns", [c.id for c in rules.campaigns])
    for number, campaign in enumerate(rules.campaigns):
        place = ("campaigns", number)
        yield from packs_triggers.check(campaign, rules, place)
        yield from _campaign(campaign, place)
        yield from _templates(campaign, rules, place)


def _signals(rules: Rules) -> Iterator[Finding]:
    if not rules.pack or not _ID.fullmatch(rules.pack):
        yield ("pack",), f"expected a name such as weather, not {rules.pack!r}", 0
    for signal, names in rules.signals.items():
        if not names:
            yield ("signals", signal), f"signals.{signal}: expected at least one event name", 0
        for number, name in enumerate(names):
            if not name.strip() or len(name) > 256 or names.index(name) < number:
                yield ("signals", signal, number), f"signals.{signal}: {name!r} is empty, too long, or given twice", 0


def _stages(rules: Rules) -> Iterator[Finding]:
    if not rules.stages:
        yield ("stages",), "stages: expected at least one", 0
    yield from _unique("stages", [s.id for s in rules.stages])
    for number, stage in enumerate(rules.stages):
        place = ("stages", number)
        if number == 0 and stage.enter:
            yield (*place, "enter"), f"stage {stage.id}: the first stage holds everyone and takes no thresholds", 0
        if number > 0 and not stage.enter:
            yield place, f"stage {stage.id}: expected thresholds under `enter`", 0
        yield from _thresholds(f"stage {stage.id}", stage.enter, (*place, "enter"))


def _thresholds(what: str, thresholds: Mapping[Measure, int], place: Place) -> Iterator[Finding]:
    for measure, least in thresholds.items():
        if least < 1:
            yield (*place, measure), f"{what}: {measure} must be at least 1, not {least}", 0


def _numbers(rules: Rules) -> Iterator[Finding]:
    days = rules.activity
    for name in days.__struct_fields__:
        if not 1 <= getattr(days, name) <= 3650:
            yield ("activity", name), f"activity.{name}: expected 1 to 3650 days", 0
    if not days.at_risk < days.inactive < days.lapsed:
        yield ("activity",), "activity: expected at_risk < inactive < lapsed", 0
    for path, value, most in (
        (("session_gap_minutes",), rules.session_gap_minutes, 1440),
        (("searched_days",), rules.searched_days, 3650),
        (("intake", "too_old_days"), rules.intake.too_old_days, MAX_TOO_OLD_DAYS),
        (("intake", "future_days"), rules.intake.future_days, 365),
    ):
        if not 1 <= value <= most:
            yield path, f"{'.'.join(path)}: expected 1 to {most}, not {value}", 0
    for name in rules.rates.__struct_fields__:
        thresholds = getattr(rules.rates, name)
        if not thresholds:
            yield ("rates", name), f"rates.{name}: expected at least one threshold; without any nobody counts", 0
        yield from _thresholds(f"rates.{name}", thresholds, ("rates", name))


def _segments(rules: Rules) -> Iterator[Finding]:
    yield from _unique("segments", [s.id for s in rules.segments])
    for number, segment in enumerate(rules.segments):
        if segment.id in BUILT_IN_SEGMENTS:
            yield ("segments", number, "id"), f"segment {segment.id} is built in; choose another id", 0
        yield from _spans(segment, ("segments", number))
        for measure, least in segment.least.items():
            if measure in segment.most and least > segment.most[measure]:
                yield ("segments", number, "least", measure), f"segment {segment.id}: {measure} can never be so", 0
        yield from unknown_stages(f"segment {segment.id}", segment.stage, rules, ("segments", number, "stage"))


def _spans(segment: Segment, place: Place) -> Iterator[Finding]:
    what = f"segment {segment.id}"
    for name in ("ordered_days", "not_ordered_days"):
        if not 0 <= getattr(segment, name) <= MAX_SEGMENT_DAYS:
            yield (*place, name), f"{what}: {name} must be 0 to {MAX_SEGMENT_DAYS}", 0
    if segment.ordered_days and segment.not_ordered_days >= segment.ordered_days:
        yield (*place, "ordered_days"), f"{what}: expected not_ordered_days < ordered_days", 0
    if segment.viewed is not None:
        if not 1 <= segment.viewed.least <= MAX_VIEWS:
            yield (*place, "viewed", "least"), f"{what}: viewed.least must be 1 to {MAX_VIEWS}", 0
        if not 1 <= segment.viewed.days <= MAX_SEGMENT_DAYS:
            yield (*place, "viewed", "days"), f"{what}: viewed.days must be 1 to {MAX_SEGMENT_DAYS}", 0


def tracking_plan(rules: Rules) -> Iterator[Finding]:
    """Faults of the tracking plan: what a schema may say is ingest's to say."""
    from services.ingest.domain.tracking_plan import UNCHECKED, Plan, SchemaFault, pointer_of

    for name, planned in rules.tracking_plan.events.items():
        place: Place = ("tracking_plan", "events", name)
        if not name.strip() or len(name) > 256 or name in UNCHECKED:
            yield place, f"tracking_plan: {name!r} is empty, too long, or a call that carries no properties", 0
            continue
        only = replace(rules.tracking_plan, events={name: planned})
        try:
            Plan(replace(rules, tracking_plan=only))
        except SchemaFault as fault:
            where = pointer_of(fault.path) or "/"
            yield (*place, "schema", *fault.path), f"tracking_plan: {name}: schema {where}: {fault.message}", 0


def _unique(what: str, ids: list[str]) -> Iterator[Finding]:
    for number, one in enumerate(ids):
        if not _ID.fullmatch(one):
            yield (what, number, "id"), f"{what}: expected an id such as win_back (a-z, 0-9, _), not {one!r}", 0
        elif one in ids[:number]:
            yield (what, number, "id"), f"{what}: the id {one!r} is taken already", 0


def _campaign(campaign: Campaign, place: Place) -> Iterator[Finding]:
    what = f"campaign {campaign.id}"
    if not 0 <= campaign.holdout_percent <= 100:
        yield (
            (*place, "holdout_percent"),
            f"{what}: holdout_percent must be 0 to 100, not {campaign.holdout_percent}",
            0,
        )
    if campaign.safety and campaign.holdout_percent > 0:
        yield (*place, "holdout_percent"), f"{what}: nobody is held out of a safety campaign; expected 0", 0
    if campaign.version < 1:
        yield (*place, "version"), f"{what}: version must be at least 1", 0
    if not 1 <= campaign.window_hours <= MAX_WINDOW_HOURS:
        yield (*place, "window_hours"), f"{what}: window_hours must be 1 to {MAX_WINDOW_HOURS}", 0
    if campaign.freshness_seconds < 1:
        yield (*place, "freshness_seconds"), f"{what}: freshness_seconds must be at least 1", 0
    if not 0 <= campaign.ttl_seconds <= MAX_TTL_SECONDS:
        yield (*place, "ttl_seconds"), f"{what}: ttl_seconds must be 0 to {MAX_TTL_SECONDS} (four weeks)", 0

    if campaign.any_hour and delay_minutes(campaign.trigger):
        yield (*place, "any_hour"), f"{what}: who is awake when the delay is over? expected false", 0
    if not 0 <= campaign.no_repeat_days <= 365:
        yield (*place, "no_repeat_days"), f"{what}: no_repeat_days must be 0 to 365, not {campaign.no_repeat_days}", 0
    if campaign.safety and campaign.no_repeat_days > 0:
        yield (*place, "no_repeat_days"), f"{what}: a safety campaign may always repeat itself; expected 0", 0


def _limits(rules: Rules) -> Iterator[Finding]:
    limits, categories = rules.limits, sorted({c.category for c in rules.campaigns if not c.safety})
    for number, cap in enumerate(limits.caps):
        place, what = ("limits", "caps", number), f"limits.caps[{number}]"
        if not 1 <= cap.most <= 1000:
            yield (*place, "most"), f"{what}.most: expected 1 to 1000 pushes, not {cap.most}", 0
        if cap.window == "rolling" and not 1 <= cap.hours <= 2160:
            yield (*place, "hours"), f"{what}.hours: a rolling window takes 1 to 2160 hours, not {cap.hours}", 0
        if cap.window != "rolling" and cap.hours:
            yield (*place, "hours"), f"{what}.hours: a calendar {cap.window} has its own length; expected none", 0
        if cap.category and cap.category not in categories:
            known = ", ".join(categories) or "none, as no campaign has limits"
            yield (*place, "category"), f"{what}.category: expected one of {known}, not {cap.category!r}", 0
    for name, most in (("gap_minutes", 43_200), ("sunset_pushes", 1000)):
        value = getattr(limits, name)
        if not 0 <= value <= most:
            yield ("limits", name), f"limits.{name}: expected 0 to {most}, not {value}", 0
    yield from _quiet_hours(limits.quiet_hours)


def _quiet_hours(quiet: QuietHours) -> Iterator[Finding]:
    place, what = ("limits", "quiet_hours"), "limits.quiet_hours"
    if not quiet.from_ and not quiet.to:
        return
    for name, told in (("from", quiet.from_), ("to", quiet.to)):
        if not _CLOCK_TIME.fullmatch(told):
            yield (*place, name), f'{what}.{name}: expected a time of day such as "22:00", not {told!r}', 0
    if quiet.from_ == quiet.to:
        yield (*place, "to"), f"{what}: expected an end that is not their beginning", 0
    try:
        ZoneInfo(quiet.zone)
    except (KeyError, ValueError, OSError):
        yield (*place, "zone"), f"{what}.zone: expected a time zone such as America/New_York, not {quiet.zone!r}", 0


def _templates(campaign: Campaign, rules: Rules, place: Place) -> Iterator[Finding]:
    """Faults of the Liquid; what a template may name is the notifier's to say."""
    from services.notifier.domain.campaign import known_variables
    from services.notifier.domain.personalise import compile_templates
    from services.notifier.domain.template_check import analyse_campaign

    problems = analyse_campaign(campaign, known_variables(campaign.trigger, rules))
    for problem in problems:
        locale, _, part = problem.where.rpartition(".")
        where = (*place, "templates", locale, part)
        yield where, f"campaign {campaign.id}, {problem.where}: {problem.message}", problem.line - 1
    if not problems:
        try:
            compile_templates(campaign)
        except ValueError as error:
            yield (*place, "templates"), str(error), 0
