"""What a rules version says: signals, stages, activity, segments, rates, campaigns.

A pack (YAML) is validated into these types and stored as JSON in `control.rules`; every service reads
the same document. Nothing weather- or shop-specific is named here.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from shared.contracts.tracking_plan import TrackingPlan

Measure = Literal[
    "opens", "screens", "sessions", "active_days", "searched", "added", "cities", "orders", "order_days", "activities",
    "revenue", "average_order", "online_orders", "store_orders", "pickup_orders", "views", "guides", "wishlist",
    "coupons", "reviews", "referrals", "feedback", "score",
]  # fmt: skip
"""Counts of a user's state that thresholds may name; `cities` = default + searched + added now,
`activities` = every event that counts as activity. Orders are net of refunds and cancellations, `order_days` days
with an order; `revenue` and `average_order` are money in minor units; `score` is the newest feedback's (-1: none)."""

SignalName = Literal[
    "open",
    "screen",
    "background",
    "install",
    "uninstall",
    "default_city",
    "city_searched",
    "city_added",
    "city_removed",
    "push_received",
    "push_opened",
    "consent",
    "order",
    "refund",
    "cancellation",
    "activity",
    "view",
    "guide",
    "wishlist",
    "coupon",
    "review",
    "referral",
    "feedback",
]

ActivityName = Literal["new", "active", "at_risk", "inactive", "lapsed", "reactivated", "uninstalled"]
CITY_SIGNALS: frozenset[SignalName] = frozenset({"default_city", "city_searched", "city_added", "city_removed"})
"""Events of these name a place; one that names none, or one that is not known, is refused."""

Relation = Literal["default", "searched", "added"]
Severity = Literal["Extreme", "Severe", "Moderate", "Minor", "Unknown"]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


class _Definition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Stage(_Definition, frozen=True):
    """A step of the journey. It is entered from the one before it once every threshold holds."""

    id: str
    title: str
    enter: dict[Measure, int] = {}


class ActivityDays(_Definition, frozen=True):
    """After how many days the pulse changes; each counted from the last activity, except `new`
    (from the first) and `reactivated` (from the return)."""

    new: int = 7
    at_risk: int = 14
    inactive: int = 30
    lapsed: int = 90
    reactivated: int = 14


class Viewed(_Definition, frozen=True):
    """At least so many product views within the last so many days."""

    least: int = 1
    days: int = 7


class Segment(_Definition, frozen=True):
    """A named predicate, all of which holds: the stage and the activity are among those listed (empty: any), no
    measure lies below `least` or above `most`, there are views enough, and the newest order lies within
    `ordered_days`, or not within `not_ordered_days` (0: not asked; whoever never ordered did not)."""

    id: str
    title: str
    stage: list[str] = []
    activity: list[ActivityName] = []
    least: dict[Measure, int] = {}
    most: dict[Measure, int] = {}
    viewed: Viewed | None = None
    ordered_days: int = 0
    not_ordered_days: int = 0


class Rates(_Definition, frozen=True):
    """Who counts as customer, repeat customer and loyal customer: thresholds, all of which hold."""

    customer: dict[Measure, int]
    repeat: dict[Measure, int]
    loyal: dict[Measure, int]


class Privacy(_Definition, frozen=True):
    """`pii_less`: events with personal data are rejected. `consent`: purposes that need a given
    consent (others are assumed until withdrawn)."""

    pii_less: bool = True
    consent: list[Literal["location", "search_history", "push"]] = []


class Intake(_Definition, frozen=True):
    """What ingest accepts. Days bound an event's age (`too_old`) and a phone's clock (`future`)."""

    too_old_days: int = 30
    future_days: int = 1
    properties: dict[str, list[str]] = {}


class StageTrigger(_Definition, frozen=True, tag="stage_changed"):
    to: list[str]
    from_: list[str] = msgspec.field(default=[], name="from")


class ActivityTrigger(_Definition, frozen=True, tag="activity_changed"):
    to: list[ActivityName]
    from_: list[ActivityName] = msgspec.field(default=[], name="from")


class AlertTrigger(_Definition, frozen=True, tag="alert"):
    """A weather alert for users whose cohorts include one of its cities. Empty lists match all."""

    severity: list[Severity] = []
    event: list[str] = []
    relations: list[Relation] = msgspec.field(default_factory=lambda: ["default", "added"])


class ScheduleTrigger(_Definition, frozen=True, tag="schedule"):
    """Moments by the clock, for users of cohorts: `at` (`HH:MM`) on `days` (empty: every day), `cron` (five fields), or
    `once` (RFC 3339; without an offset by the clock of `zone`). Exactly one of the three is given.

    `zone`: whose clock: `local`, that of the city which ties a user to the audience; or one for all, such as UTC or
    Europe/Paris. `context`: `forecast` tells of the forecast for the user's city; where there is none, nobody is told.
    `until` (`HH:MM`): when it is over by the same clock, the next day where that is earlier (empty: it is not)."""

    at: str = ""
    days: list[Weekday] = []
    cron: str = ""
    once: str = ""
    zone: str = "local"
    relations: list[Relation] = msgspec.field(default_factory=lambda: ["default"])
    context: Literal["", "forecast"] = ""
    until: str = ""


class EventTrigger(_Definition, frozen=True, tag="event"):
    """A user's event of one of these names, as the app posts them, with one of these values in each of these
    properties.

    `delay_minutes`: only so much later, and not if one of the events `unless` occurs before that. It must agree with
    the first one in all of `same`: properties, or `city`, the place an event names. An event that lacks one of these
    sets nothing going."""

    event: list[str]
    where: dict[str, list[str | int | float | bool]] = {}
    delay_minutes: int = 0
    unless: list[str] = []
    same: list[str] = []


class SegmentTrigger(_Definition, frozen=True, tag="segment_entered"):
    """The user enters one of these segments; with `delay_minutes` only if they are in it all that time."""

    segment: list[str]
    delay_minutes: int = 0


class SegmentExitTrigger(_Definition, frozen=True, tag="segment_exited"):
    """The user leaves one of these segments; with `delay_minutes` only if they stay out of it all that time."""

    segment: list[str]
    delay_minutes: int = 0


Trigger = (
    StageTrigger | ActivityTrigger | AlertTrigger | ScheduleTrigger | EventTrigger | SegmentTrigger | SegmentExitTrigger
)


class Audience(_Definition, frozen=True):
    """Whom a campaign is for, as the user is when it is planned: one of these stages, one of these activities, in one
    of these segments and in none of those of `not_segment`. What is empty asks nothing."""

    stage: list[str] = []
    activity: list[ActivityName] = []
    segment: list[str] = []
    not_segment: list[str] = []


class Template(_Definition, frozen=True):
    """Liquid sources of a push in one locale."""

    title: str
    body: str


class Campaign(_Definition, frozen=True):
    """Who gets what, when. `holdout_percent` of the users are exposed without being sent.

    `safety` campaigns hold nobody out, no limits bind them, and they use none up. `on_unknown`: what becomes
    of a push whose outcome was never learnt — sent again under the same collapse id, or given up.
    `no_repeat_days`: for how long a user is not sent the same `offer` again, whichever campaign makes it, or
    without an offer the same text (0: it may be repeated). `freshness_seconds` count from what set the campaign going,
    or from the end of the delay. `any_hour`: quiet hours do not hold it, for it answers what its user has just done.
    `window_hours`: for how long after it was for a user what they do is compared with what those held out do; a
    comparison begins anew with each `version`.
    """

    id: str
    title: str
    trigger: Trigger
    templates: dict[str, Template]
    version: int = 1
    locale: str = "en"
    category: str = "lifecycle"
    safety: bool = False
    holdout_percent: float = 0.0
    freshness_seconds: int = 3600
    ttl_seconds: int = 86_400
    on_unknown: Literal["retry", "give_up"] = "give_up"
    enabled: bool = True
    offer: str = ""
    no_repeat_days: int = 0
    audience: Audience = Audience()
    window_hours: int = 72
    any_hour: bool = False

    @property
    def measured(self) -> bool:
        """Whether some are held out, with whom the others can be compared."""
        return self.holdout_percent > 0 and not self.safety


class Cap(_Definition, frozen=True):
    """At most `most` pushes to a user in any `hours` (rolling), or in a calendar day, week (from Monday) or month of
    the user's time zone. `category`: counts and binds only campaigns of that category (empty: all together)."""

    most: int
    window: Literal["rolling", "day", "week", "month"] = "rolling"
    hours: int = 0
    category: str = ""


class QuietHours(_Definition, frozen=True):
    """From when to when, by the user's clock (`HH:MM`), nothing is sent; it may run over midnight. Both empty: never.

    `zone`: whose clock counts for a user whose time zone is unknown."""

    from_: str = msgspec.field(default="", name="from")
    to: str = ""
    zone: str = "UTC"


class Limits(_Definition, frozen=True):
    """How much a user is sent, and when not; by default as much as there is. Safety campaigns are free of them.

    `gap_minutes`: least time between two pushes. `sunset_pushes`: after so many within a year of which the user
    opened none since, nothing more is sent (0: no end)."""

    caps: list[Cap] = []
    gap_minutes: int = 0
    quiet_hours: QuietHours = QuietHours()
    sunset_pushes: int = 0


class Rules(_Definition, frozen=True):
    """One rules version, whole. `signals` maps a signal to the event names that carry it. `currency` is the one
    revenue is told in; an order in another counts, what it brought does not."""

    pack: str
    title: str
    signals: dict[SignalName, list[str]]
    stages: list[Stage]
    rates: Rates
    activity: ActivityDays = ActivityDays()
    session_gap_minutes: int = 30
    searched_days: int = 30
    currency: str = "USD"
    segments: list[Segment] = []
    privacy: Privacy = Privacy()
    intake: Intake = Intake()
    campaigns: list[Campaign] = []
    limits: Limits = Limits()
    tracking_plan: TrackingPlan = TrackingPlan()


def city_events(rules: Rules) -> frozenset[str]:
    """The events that name a place."""
    return frozenset(name for signal in CITY_SIGNALS for name in rules.signals.get(signal, ()))


def known_events(rules: Rules) -> frozenset[str]:
    """The events the pack names: in its tracking plan, its signals, or the lists of properties kept."""
    signals = (name for names in rules.signals.values() for name in names)
    return frozenset((*rules.tracking_plan.events, *rules.intake.properties, *signals))


encode_rules = msgspec.json.Encoder().encode
decode_rules = msgspec.json.Decoder(Rules).decode
