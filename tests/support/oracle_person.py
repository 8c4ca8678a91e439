"""What becomes of one user, told again from the events and the passing of time: the oracle's own lifecycle.

Written from the semantics, not from the services: one mutable person, plain dicts and sets, every rule said where
it is used. Slow and unbounded on purpose: a set of message ids where the product keeps a ring, a set of days where
it keeps a bitmap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from tests.support import oracle_moments
from tests.support.oracle_shop import Purchases

DAY = 86_400_000
HOUR = 3_600_000
NEVER = -1
QUIET_SIGNALS = {"push_received", "background", "consent", "uninstall", "refund", "cancellation"}
QUIET_CALLS = {"$identify", "$group", "$alias"}
AWAKE = {"new", "active", "at_risk", "reactivated"}


class Row(NamedTuple):
    """A ledger row as it should be, without its number."""

    kind: str
    payload: dict[str, Any]
    occurred_at: int
    cause_type: str
    cause_id: str
    src: int


def rfc3339(ms: int) -> str:
    days, rest = divmod(ms, DAY)
    year, month, day = _civil(days)
    seconds, milli = divmod(rest, 1000)
    return f"{year:04}-{month:02}-{day:02}T{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{milli:03}Z"


def _civil(days: int) -> tuple[int, int, int]:
    """Year, month, day of a day since 1970. Source: Howard Hinnant, chrono-compatible date algorithms."""
    z = days + 719_468
    era, doe = divmod(z, 146_097)
    yoe = (doe - doe // 1460 + doe // 36_524 - doe // 146_096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    month = mp + 3 if mp < 10 else mp - 9
    return yoe + era * 400 + (month <= 2), month, doy - (153 * mp + 2) // 5 + 1


class Book:
    """One rules version, as its JSON says it."""

    def __init__(self, version: int, body: dict[str, Any]) -> None:
        self.version = version
        self.stages: list[dict[str, Any]] = body["stages"]
        self.segments: list[dict[str, Any]] = body.get("segments", [])
        self.campaigns: list[dict[str, Any]] = body.get("campaigns", [])
        self.rates: dict[str, dict[str, int]] = body["rates"]
        self.days = {"new": 7, "at_risk": 14, "inactive": 30, "lapsed": 90, "reactivated": 14, **body["activity"]}
        self.gap = body.get("session_gap_minutes", 30) * 60_000
        self.search_kept = body.get("searched_days", 30) * DAY
        self.currency = body.get("currency", "USD")
        self.consent_asked = set(body.get("privacy", {}).get("consent", []))
        self.properties: dict[str, list[str]] = body.get("intake", {}).get("properties", {})
        self.compares = any(c.get("holdout_percent") and not c.get("safety") for c in self.campaigns)
        self._signals: dict[str, list[str]] = body["signals"]

    def signals(self, name: str) -> set[str]:
        return {signal for signal, names in self._signals.items() if name in names}


def of_orders(least: dict[str, int]) -> bool:
    """Whether nothing but orders decides who reaches these thresholds."""
    return any(least.values()) and set(least) <= {"orders", "order_days", "revenue"}


class Person:
    """A user under simulation. `rows` grows as things become true of them."""

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.rows: list[Row] = []
        self.born = False
        self.version = 0
        self.stage = ""
        self.stage_at = NEVER
        self.pulse = ""
        self.pulse_at = NEVER
        self.first_seen = self.last_seen = NEVER
        self.first_act = self.last_act = NEVER
        self.visit: list[int] | None = None  # [start, last, screens] of the present session
        self.visit_is_new = False
        self.counts = dict.fromkeys(("opens", "screens", "sessions", "active_days", "activities"), 0)
        self.days: set[int] = set()
        self.months: set[int] = set()
        self.visits: Counter[tuple[int, str]] = Counter()  # (day, sessions or screens)
        self.turns: list[tuple[int, str, int]] = []  # (day, role, ±1) under rules that ask for more than orders
        self.turned = NEVER  # the newest day on which a role turned
        self.home = 0
        self.searched: dict[int, list[int]] = {}  # city -> [count, second of the last], in order of entry
        self.added: dict[int, list[int]] = {}
        self.segments: set[str] = set()
        self.consents: dict[str, bool] = {}
        self.roles: set[str] = set()
        self.devices: dict[str, tuple[str, str, str]] = {}  # id -> (id, type, token), newest last
        self.profile = {"locale": "", "timezone": "", "app_version": ""}
        self.channels = ["", ""]
        self.bought = Purchases()
        self.now = NEVER
        self.ids: dict[str, int] = {}
        self.received: list[tuple[str, int]] = []
        self.doubts: list[str] = []
        self._src = NEVER
        self.known = False
        self.merged_into = ""
        self.claims: dict[str, int] = {}  # another id -> 0 asked, 1 absorbed, 2 refused
        self.assignment = user_id  # who was seen first of all they are
        self.settled: dict[int, str] = {}  # day -> the pause before it, where that does not change any more
        self.counted_elsewhere: set[int] = set()  # days another of their ids is counted on

    # -- stimuli

    def comes_to(self, moment: int, book: Book, history: Iterable[tuple[int, Book]], src: int = NEVER) -> None:
        """Time reaches `moment`, having passed through every rules version that came into force meanwhile."""
        if not self.born or self.merged_into:
            return
        self._src = src
        before: Book | None = None
        for since, version in history:
            if version.version > self.version:
                if before is not None:
                    self.live_until(since, before)
                self._turn(since, before, -1)
                self.version, self.now = version.version, since
                self.conclude(since, "rules", str(version.version), version)
                self._turn(since, version, 1)
            before = version
        self.live_until(moment, book)

    def does(self, event: dict[str, Any], moment: int, book: Book, history: Iterable[tuple[int, Book]]) -> bool:
        """An accepted event arrives at `moment`; False if it is a repeat."""
        self._src = event["src"]
        at, cause = event["occurred_at"], event["message_id"]
        if self.born:
            self.comes_to(moment, book, history, event["src"])
        else:
            self.born, self.version = True, book.version
            self.stage, self.stage_at = book.stages[0]["id"], at
            self.first_seen = self.last_seen = at
            self.tell("stage_changed", {"from": None, "to": self.stage}, at, "event", cause)
        if self.seen_before(cause, event["received_at"]):
            return False
        signals = book.signals(event["name"])
        self.now = moment
        self.first_seen, self.last_seen = min(self.first_seen, at), max(self.last_seen, at)
        self._phone(event, at, cause)
        if event["name"] not in QUIET_CALLS and not signals & QUIET_SIGNALS:
            before = self.visit
            self._acts(at, moment, "screen" in signals, cause, book)
            if self.visit is not None and self.visit_is_new and book.compares and event["mode"] != "import":
                ended = {"ended_began_at": before[0] if before else NEVER, "ended_screens": before[2] if before else 0}
                self.tell("session_began", ended, at, "event", cause)
        if "open" in signals:
            self.counts["opens"] += 1
        if "uninstall" in signals and at >= self.last_act:
            self.pulse_becomes("uninstalled", at, "event", cause)
        elif not self.pulse:
            self.pulse_becomes("inactive", at, "event", cause)
        if "consent" in signals:
            self._consents(event["properties"].get("categories"), at, cause)
        self.bought.hear(event, signals, book.currency)
        if event["city_id"] is not None:
            self._goes_places(event["city_id"], signals, at, moment, cause, book)
        if "push_opened" in signals and isinstance(event["properties"].get("message_id"), str):
            self.tell("opened", {"message_id": event["properties"]["message_id"]}, at, "event", cause)
        self.conclude(at, "event", cause, book)
        self.live_until(moment, book)
        told = oracle_moments.moment(book.campaigns, book.properties, event)
        asked = ["location"] * (event["city_id"] is not None) + ["search_history"] * ("city_searched" in signals)
        if told is not None and all(self.may(purpose, book) for purpose in asked):
            self.tell("moment", told, at, "event", cause)
        return True

    def from_nowhere(self) -> None:
        """What follows goes back to no raw record of this shard."""
        self._src = NEVER

    def ties(self) -> list[tuple[str, int]]:
        ties = [("default", self.home)] if self.home else []
        return ties + [("added", c) for c in self.added] + [("searched", c) for c in self.searched]

    def pauses(self) -> dict[int, str]:
        """Each active day that is counted here, with what lay between it and the one before."""
        inside = sorted(self.days)
        found = {
            day: str(min(day - before, 31)) if before is not None else "first"
            for before, day in zip([None, *inside], inside, strict=False)
        }
        return {day: self.settled.get(day, pause) for day, pause in found.items() if day not in self.counted_elsewhere}

    # -- repeats

    def seen_before(self, message_id: str, received_at: int) -> bool:
        """Exact for the last 32 ids and for 24 hours of received time; beyond that the promise ends."""
        if message_id in self.ids:
            recent = {i for i, _ in self.received[-32:]}
            if message_id not in recent and received_at - self.ids[message_id] >= DAY:
                self.doubts.append(f"user {self.user_id}: the repeat of {message_id} lies outside the promise")
            return True
        self.ids[message_id] = received_at
        self.received.append((message_id, received_at))
        return False

    # -- what events do

    def _phone(self, event: dict[str, Any], at: int, cause: str) -> None:
        context = event["context"]
        if context is None:
            return
        if context["campaign"]:
            self.channels = [self.channels[0] or context["campaign"], context["campaign"]]
        device = context["device"]
        if device is not None and self.devices.get(device[0]) != device:
            same_token = [d for d in self.devices.values() if d[2] == device[2] and d[0] != device[0]]
            kept = [d for d in self.devices.values() if d[0] != device[0] and d[2] != device[2]]
            pushed_out = kept[: max(0, len(kept) - 7)]
            for gone in same_token + pushed_out:
                self.tell("device_removed", {"device_id": gone[0]}, at, "event", cause)
            self.devices = {d[0]: d for d in [*kept[len(pushed_out) :], device]}
            told = {"id": device[0], "type": device[1], "token": device[2]}
            self.tell("device_set", {"device": told}, at, "event", cause)
        news = {k: context[k] for k in self.profile if context[k] and context[k] != self.profile[k]}
        if news:
            self.profile |= news
            self.tell("profile_set", news, at, "event", cause)

    def _acts(self, at: int, moment: int, screen: bool, cause: str, book: Book) -> None:
        self.counts["activities"] += 1
        self.counts["screens"] += screen
        day = at // DAY
        self.visits[day, "screens"] += screen
        self.visit_is_new = self.visit is None or at > self.visit[1] + book.gap
        if self.visit is None or self.visit_is_new:
            self.visit = [at, at, int(screen)]
            self.counts["sessions"] += 1
            self.visits[day, "sessions"] += 1
        elif at >= self.visit[0] - book.gap:
            self.visit = [min(self.visit[0], at), max(self.visit[1], at), self.visit[2] + screen]
        if day not in self.days and day > max(self.days, default=NEVER) - 64:
            self.days.add(day)
            self.counts["active_days"] += 1
        year, number, _ = _civil(day)
        month = year * 12 + number - 1
        if month > max(self.months, default=month) - 62:
            self.months.add(month)
        first = self.last_act == NEVER
        self.first_act = at if first else min(self.first_act, at)
        if at <= self.last_act:
            return
        self.last_act = at
        ago = moment - at
        if first:
            self.pulse_becomes("new", at, "event", cause)
        elif self.pulse == "uninstalled" and at <= self.pulse_at:
            pass  # used before it was uninstalled
        elif self.pulse in ("inactive", "lapsed") and ago >= book.days["inactive"] * DAY:
            if ago < book.days["lapsed"] * DAY:  # so long ago that the user is inactive all the same
                self.pulse_becomes("inactive", at, "event", cause)
        elif self.pulse == "at_risk" and ago >= book.days["at_risk"] * DAY:
            pass
        elif self.pulse in ("inactive", "lapsed", "uninstalled"):
            self.pulse_becomes("reactivated", at, "event", cause)
        elif self.pulse == "at_risk":
            self.pulse_becomes("active", at, "event", cause)

    def _consents(self, told: Any, at: int, cause: str) -> None:
        if not isinstance(told, dict):
            return
        news = {p: told[p] for p in ("location", "search_history", "push") if isinstance(told.get(p), bool)}
        if not news:
            return
        self.consents |= news
        self.tell("consent_set", news, at, "event", cause)
        if news.get("location") is False:
            if self.home:
                self.cohort(False, "default", self.home, at, cause)
            for city in list(self.added):
                self.cohort(False, "added", city, at, cause)
            self.home, self.added = 0, {}
        if news.get("location") is False or news.get("search_history") is False:
            for city in list(self.searched):
                self.cohort(False, "searched", city, at, cause)
            self.searched = {}

    def may(self, purpose: str, book: Book) -> bool:
        return self.consents.get(purpose, purpose not in book.consent_asked)

    def _goes_places(self, city: int, signals: set[str], at: int, moment: int, cause: str, book: Book) -> None:
        if "city_removed" in signals and city in self.added:
            del self.added[city]
            self.cohort(False, "added", city, at, cause)
        if not self.may("location", book):
            return
        if "default_city" in signals and self.home != city:
            if self.home:
                self.cohort(False, "default", self.home, at, cause)
            self.home = city
            self.cohort(True, "default", city, at, cause)
        second = at // 1000 * 1000  # a city is remembered to the second of its last visit
        forgotten_already = city not in self.searched and second + book.search_kept <= moment
        if "city_searched" in signals and self.may("search_history", book) and not forgotten_already:
            self._ties(self.searched, "searched", city, at, second, cause)
        if "city_added" in signals:
            self._ties(self.added, "added", city, at, second, cause)

    def _ties(self, cities: dict[int, list[int]], relation: str, city: int, at: int, second: int, cause: str) -> None:
        if city in cities:
            cities[city] = [cities[city][0] + 1, max(cities[city][1], second)]
            return
        if len(cities) >= 8:
            oldest = min(cities, key=lambda c: (cities[c][1], c))
            del cities[oldest]
            self.cohort(False, relation, oldest, at, cause)
        cities[city] = [1, second]
        self.cohort(True, relation, city, at, cause)

    # -- what time does

    def next_moment(self, book: Book) -> int:
        """The earliest moment at which anything would change if nothing happened."""
        pulse, expiry = self._pulse_runs_out(book), self._search_runs_out(book)
        ends = [pulse and pulse[0], expiry, self._segment_turns(book)]
        return min((m for m in ends if m is not None), default=NEVER)

    def _pulse_runs_out(self, book: Book) -> tuple[int, str] | None:
        if self.last_act == NEVER:
            return None
        since_act = {span: self.last_act + book.days[span] * DAY for span in ("at_risk", "inactive", "lapsed")}
        ends: list[tuple[int, str]] = []
        if self.pulse in ("new", "reactivated"):
            ends.append((self.pulse_at + book.days[self.pulse] * DAY, "active"))
        if self.pulse in ("new", "reactivated", "active"):
            ends.append((since_act["at_risk"], "at_risk"))
        if self.pulse == "at_risk":
            ends.append((since_act["inactive"], "inactive"))
        if self.pulse == "inactive":
            ends.append((since_act["lapsed"], "lapsed"))
        # never before the present value was entered; on a tie settling comes first
        return min(((max(at, self.pulse_at), to) for at, to in ends), key=lambda end: end[0], default=None)

    def _search_runs_out(self, book: Book) -> int | None:
        return min((last + book.search_kept for _, last in self.searched.values()), default=None)

    def _segment_turns(self, book: Book) -> int | None:
        """The first whole span counted from a view or an order after which another set of segments holds."""
        marks = [*self.bought.views, self.bought.last_order_at()]
        spans = {
            days
            for s in book.segments
            for days in (s.get("ordered_days"), s.get("not_ordered_days"), (s.get("viewed") or {}).get("days"))
            if days
        }
        moments = sorted({mark + days * DAY for mark in marks if mark != NEVER for days in spans})
        here = self._segments_at(self.now, book)
        return next((m for m in moments if m > self.now and self._segments_at(m, book) != here), None)

    def live_until(self, moment: int, book: Book) -> None:
        while 0 <= (due := self.next_moment(book)) <= moment:
            cause = rfc3339(due)
            pulse = self._pulse_runs_out(book)
            for city, (_, last) in list(self.searched.items()):
                if last + book.search_kept <= due:
                    del self.searched[city]
                    self.cohort(False, "searched", city, due, cause, "tick")
            if pulse is not None and pulse[0] == due:
                self.pulse_becomes(pulse[1], due, "tick", cause)
            self.now = max(self.now, due)
            self.conclude(due, "tick", cause, book)
        self.now = max(self.now, moment)

    # -- what follows

    def measures(self) -> dict[str, int]:
        ties = {"searched": len(self.searched), "added": len(self.added)}
        cities = ties["searched"] + ties["added"] + (self.home != 0)
        return {**self.counts, **ties, "cities": cities, **self.bought.measures()}

    def _reaches(self, thresholds: dict[str, int]) -> bool:
        have = self.measures()
        return all(have[name] >= least for name, least in thresholds.items())

    def conclude(self, at: int, cause_type: str, cause: str, book: Book) -> None:
        ids = [s["id"] for s in book.stages]
        if self.stage not in ids:
            self.stage_becomes(ids[0], at, cause_type, cause)
        for stage in book.stages[ids.index(self.stage) + 1 :]:
            if not self._reaches(stage.get("enter", {})):
                break
            self.stage_becomes(stage["id"], at, cause_type, cause)
        roles = {role for role, least in book.rates.items() if least and self._reaches(least)}
        for role in sorted(roles ^ self.roles):
            if cause_type == "rules":
                self.turned = max(self.turned, at // DAY)
            elif not of_orders(book.rates[role]):
                self.turned = max(self.turned, at // DAY)
                self.turns.append((self.turned, role, 1 if role in roles else -1))
        self.roles = roles
        now = self._segments_at(self.now, book)
        for left in sorted(self.segments - now):
            self.tell("segment_exited", {"segment": left}, at, cause_type, cause)
        for came in sorted(now - self.segments):
            self.tell("segment_entered", {"segment": came}, at, cause_type, cause)
        self.segments = now

    def _turn(self, since: int, book: Book | None, by: int) -> None:
        """Rules come or go with the roles they make, as far as these are no matter of orders alone."""
        roles = [role for role in sorted(self.roles) if book is not None and not of_orders(book.rates[role])]
        self.turns += [(since // DAY, role, by) for role in roles]

    def _segments_at(self, moment: int, book: Book) -> set[str]:
        have, last = self.measures(), self.bought.last_order_at()
        return {
            "active_30d" if self.pulse in AWAKE else "inactive_30d",
            *(s["id"] for s in book.segments if self._belongs(s, moment, have, last)),
        }

    def _belongs(self, segment: dict[str, Any], moment: int, have: dict[str, int], last: int) -> bool:
        viewed, within, without = segment.get("viewed"), segment.get("ordered_days"), segment.get("not_ordered_days")
        fresh = [at for at in self.bought.views if viewed and moment - at < viewed.get("days", 7) * DAY]
        return (
            self.stage in (segment.get("stage") or [self.stage])
            and self.pulse in (segment.get("activity") or [self.pulse])
            and all(have[name] >= n for name, n in segment.get("least", {}).items())
            and all(have[name] <= n for name, n in segment.get("most", {}).items())
            and (not viewed or len(fresh) >= viewed.get("least", 1))
            and (not within or (last != NEVER and moment - last < within * DAY))
            and (not without or last == NEVER or moment - last >= without * DAY)
        )

    def stage_becomes(self, to: str, at: int, cause_type: str, cause: str) -> None:
        self.tell("stage_changed", {"from": self.stage, "to": to}, at, cause_type, cause)
        self.stage, self.stage_at = to, at

    def pulse_becomes(self, to: str, at: int, cause_type: str, cause: str) -> None:
        if to != self.pulse:
            self.tell("activity_changed", {"from": self.pulse or None, "to": to}, at, cause_type, cause)
            self.pulse, self.pulse_at = to, at

    def cohort(self, entered: bool, relation: str, city: int, at: int, cause: str, cause_type: str = "event") -> None:
        kind = "cohort_entered" if entered else "cohort_exited"
        self.tell(kind, {"relation": relation, "city_id": city}, at, cause_type, cause)

    def tell(self, kind: str, payload: dict[str, Any], at: int, cause_type: str, cause: str) -> None:
        self.rows.append(Row(kind, dict(payload), at, cause_type, cause, self._src))
