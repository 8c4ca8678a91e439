"""Does a pack that is well-formed also make sense?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from services.packs_yaml import Fault, Place, Source
from shared.contracts.rules import Campaign, Measure, Rules, StageTrigger

_ID = re.compile(r"[a-z][a-z0-9_]{0,63}")
_BUILT_IN_SEGMENTS = frozenset({"active_30d", "inactive_30d"})

MAX_TTL_SECONDS = 28 * 86_400
"""Four weeks: the longest a push provider keeps a message (FCM)."""

MAX_TOO_OLD_DAYS = 3650


def check(rules: Rules, source: Source) -> list[Fault]:
    """Everything wrong with the meaning of a pack, in the order of its parts."""
    return [source.fault(place, message, below) for place, message, below in _found(rules)]


Finding = tuple[Place, str, int]


def _found(rules: Rules) -> Iterator[Finding]:
    yield from _signals(rules)
    yield from _stages(rules)
    yield from _numbers(rules)
    yield from _segments(rules)
    yield from _unique("campaigns", [c.id for c in rules.campaigns])
    for number, campaign in enumerate(rules.campaigns):
        place = ("campaigns", number)
        yield from _campaign(campaign, [s.id for s in rules.stages], place)
        yield from _templates(campaign, place)


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
    stages = [s.id for s in rules.stages]
    yield from _unique("segments", [s.id for s in rules.segments])
    for number, segment in enumerate(rules.segments):
        if segment.id in _BUILT_IN_SEGMENTS:
            yield ("segments", number, "id"), f"segment {segment.id} is built in; choose another id", 0
        yield from _unknown_stages(f"segment {segment.id}", segment.stage, stages, ("segments", number, "stage"))


def _unknown_stages(what: str, named: Iterable[str], stages: list[str], place: Place) -> Iterator[Finding]:
    for number, stage in enumerate(named):
        if stage not in stages:
            yield (*place, number), f"{what}: there is no stage {stage!r}; expected one of {', '.join(stages)}", 0


def _unique(what: str, ids: list[str]) -> Iterator[Finding]:
    for number, one in enumerate(ids):
        if not _ID.fullmatch(one):
            yield (what, number, "id"), f"{what}: expected an id such as win_back (a-z, 0-9, _), not {one!r}", 0
        elif one in ids[:number]:
            yield (what, number, "id"), f"{what}: the id {one!r} is taken already", 0


def _campaign(campaign: Campaign, stages: list[str], place: Place) -> Iterator[Finding]:
    what = f"campaign {campaign.id}"
    trigger = campaign.trigger
    if isinstance(trigger, StageTrigger):
        yield from _unknown_stages(what, trigger.to, stages, (*place, "trigger", "to"))
        yield from _unknown_stages(what, trigger.from_, stages, (*place, "trigger", "from"))
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
    if campaign.freshness_seconds < 1:
        yield (*place, "freshness_seconds"), f"{what}: freshness_seconds must be at least 1", 0
    if not 0 <= campaign.ttl_seconds <= MAX_TTL_SECONDS:
        yield (*place, "ttl_seconds"), f"{what}: ttl_seconds must be 0 to {MAX_TTL_SECONDS} (four weeks)", 0


def _templates(campaign: Campaign, place: Place) -> Iterator[Finding]:
    """Faults of the Liquid; what a template may name is the notifier's to say."""
    from services.notifier.domain.campaign import known_variables
    from services.notifier.domain.personalise import compile_templates
    from services.notifier.domain.template_check import analyse_campaign

    problems = analyse_campaign(campaign, known_variables(campaign.trigger))
    for problem in problems:
        locale, _, part = problem.where.rpartition(".")
        where = (*place, "templates", locale, part)
        yield where, f"campaign {campaign.id}, {problem.where}: {problem.message}", problem.line - 1
    if not problems:
        try:
            compile_templates(campaign)
        except ValueError as error:
            yield (*place, "templates"), str(error), 0
