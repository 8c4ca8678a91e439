"""What becomes of a batch's occurrences: judged one after the other, each by all that was sent before it.

What counts against a user's limits is read once for the whole batch, with the ids of messages there are already; what
the batch itself plans is added in memory. All of it is written in one commit under the owner's fence, so a limit is
used up by what is committed and by nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from msgspec.json import encode
from msgspec.structs import replace

from services.notifier import history, messages, runs
from services.notifier.book import Active, CampaignBook, Definitions
from services.notifier.domain.alert_chain import Step, Update
from services.notifier.domain.campaign import Occurrence, calls_off, city_facts, key_of, matches, occurrence_of
from services.notifier.domain.frequency_cap import DAY_MS, PENDING, Past
from services.notifier.domain.gates import Reason, freshness
from services.notifier.domain.plan import FIRST, Defer, Send, Texts, message_id_of, plan
from services.notifier.domain.recipient import Recipient
from services.notifier.erasing import Erased
from services.notifier.exposures import Session
from services.notifier.history import Key
from services.notifier.holding import Held, called_off, not_sent, of_users
from services.notifier.messages import Message
from shared.contracts.events import Feed, FeedRow
from shared.data.db import Pool
from shared.gazetteer import Gazetteer
from shared.process.clock import Clock


@dataclass(slots=True)
class Draft:
    """What a batch wants written: recipients (None: gone), new messages, messages released, taps, sessions begun,
    users erased.

    `rules`: the definitions it is planned by, whatever comes into force meanwhile. `follows`: by id of a message of a
    chain of alerts, the id of the one that is out of date if it has not gone out by then. `past`: pushes that count,
    by user. `kept`: which of the batch's messages there are already. `waiting`: messages that have to wait, by user, of
    those whom a row of the batch may call one off for. `texts`: by run and city, what was said of it so far."""

    rules: Definitions
    recipients: dict[Key, Recipient | None] = field(default_factory=dict)
    planned: list[Message] = field(default_factory=list)
    released: list[Message] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    follows: dict[str, str] = field(default_factory=dict)
    taps: list[tuple[int, str, str, int]] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    erased: list[Erased] = field(default_factory=list)
    past: dict[Key, list[Past]] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    waiting: dict[Key, list[Held]] = field(default_factory=dict)
    texts: dict[tuple[str, int], Texts] = field(default_factory=dict)

    def erase(self, who: Erased) -> None:
        """Forget what the batch had in store for a user who is erased by it."""
        key = (who.shard, who.user_id)
        self.planned = [m for m in self.planned if (m.shard, m.user_id) != key]
        self.released = [m for m in self.released if (m.shard, m.user_id) != key]
        self.taps = [tap for tap in self.taps if tap[:2] != key]
        self.sessions = [session for session in self.sessions if session[:2] != key]
        self.past.pop(key, None)
        self.waiting.pop(key, None)
        self.erased.append(who)


class Candidate(NamedTuple):
    """What may be planned for a user; of a chain of alerts, with the step it is and why the last one was not sent."""

    shard: int
    user_id: str
    active: Active
    occurrence: Occurrence
    update: Update | None = None
    not_sent: str = ""


class Cause(NamedTuple):
    """What a message goes back to: the segmenter's ledger row, and the raw record, or the run and perhaps the city."""

    gen: int
    seq: int
    src: int
    run_id: str
    city_id: int = 0

    def note(self, message: Message) -> None:
        message.cause_gen, message.cause_seq, message.cause_src, message.run_id, message.city_id = self


class Planner:
    def __init__(self, pool: Pool, book: CampaignBook, clock: Clock, gazetteer: Gazetteer) -> None:
        self._pool, self._book, self._clock, self._gazetteer = pool, book, clock, gazetteer

    async def remember(self, draft: Draft, candidates: Iterable[Candidate]) -> None:
        """Read what the limits of these are judged by; must come before the first of them is planned.

        A message that is there already would use its user's limits up a second time, or wait a second time; so their
        ids are read, too. What is stale even now, as most of an import is, never comes to its limits."""
        now = self._clock.now_ms()
        several = list(candidates)
        bound = [
            one
            for one in several
            if draft.rules.history_days
            and not one.active.campaign.safety
            and not one.occurrence.due_at
            and (one.update is None or one.update.step.sound)
            and freshness(one.active.campaign, one.occurrence, now).passed
        ]
        draft.past = await history.load(self._pool, {(one.shard, one.user_id) for one in bound}, self._since(draft))
        later = [one for one in several if one.occurrence.due_at]
        ids = {message_id_of(one.active.campaign, one.user_id, one.occurrence) for one in (*bound, *later)}
        draft.kept = await runs.told(self._pool, ids) if ids else set()

    async def remember_rows(self, draft: Draft, feed: Mapping[int, list[Feed]]) -> None:
        """`remember` for what these rows may set going, and read what they may call off."""
        rows = [(s, r) for s, several in feed.items() for r in several if isinstance(r, FeedRow) and r.user_id]
        await self.remember(
            draft,
            (
                Candidate(shard, row.user_id, active, self._occurrence(draft, active, row))
                for shard, row in rows
                for active in _begun(draft, row)
            ),
        )
        ended = {(shard, row.user_id) for shard, row in rows if key_of(row) in draft.rules.ending}
        for held in await of_users(self._pool, ended):
            draft.waiting.setdefault((held.message.shard, held.message.user_id), []).append(held)

    def row(self, draft: Draft, shard: int, row: FeedRow, recipient: Recipient, told_ms: int) -> None:
        """What one row of the feed, folded already, calls off, and then sets going. `told_ms`: up to when the rows
        before it had told everything."""
        if key_of(row) in draft.rules.ending:
            self._call_off(draft, shard, row)
        for active in _begun(draft, row):
            occurrence, cause = self._occurrence(draft, active, row), Cause(row.gen, row.seq, row.src, "")
            if occurrence.due_at:
                self._wait(draft, active, row.user_id, occurrence, shard, cause, told_ms)
            else:
                self.plan(draft, Candidate(shard, row.user_id, active, occurrence), recipient, cause)

    def _occurrence(self, draft: Draft, active: Active, row: FeedRow) -> Occurrence:
        facts: dict[str, Any] = {}
        if "city_id" in row.payload:
            facts["city"] = city_facts(self._gazetteer.get(row.payload["city_id"]))
        if "segment" in row.payload:
            name = row.payload["segment"]
            facts["segment"] = {"id": name, "title": draft.rules.segment_titles.get(name, name)}
        return occurrence_of(active.campaign.trigger, row, facts)

    def _call_off(self, draft: Draft, shard: int, row: FeedRow) -> None:
        still: list[Held] = []
        for held in draft.waiting.get((shard, row.user_id), ()):
            active = draft.rules.by_id.get(held.message.campaign)
            if active is None or not calls_off(active.campaign.trigger, held.occurrence, row):
                still.append(held)
                continue
            message = called_off(held.message, row, self._clock.now_ms())
            if message.message_id not in draft.ids:
                draft.released.append(message)
        draft.waiting[shard, row.user_id] = still

    def _wait(
        self, draft: Draft, active: Active, user_id: str, occurrence: Occurrence, shard: int, cause: Cause, told_ms: int
    ) -> None:
        """Keep an occurrence until its delay is over. One that came so late that it is over already waits for the next
        time told: what was received together with it may call it off."""
        message_id = message_id_of(active.campaign, user_id, occurrence)
        if message_id in draft.ids or message_id in draft.kept:
            return
        message = messages.waiting(
            message_id, active.campaign, shard=shard, user_id=user_id, occurrence=occurrence,
            release_at=max(occurrence.due_at, told_ms + 1), now_ms=self._clock.now_ms(),
        )  # fmt: skip
        cause.note(message)
        draft.ids.add(message_id)
        draft.planned.append(message)
        draft.waiting.setdefault((shard, user_id), []).append(Held(message, occurrence))

    async def remember_held(self, draft: Draft, due: Iterable[Held]) -> None:
        """As `remember`, for messages that were kept and are planned again."""
        if draft.rules.history_days:
            keys = {(held.message.shard, held.message.user_id) for held in due}
            draft.past = await history.load(self._pool, keys, self._since(draft))

    def plan(self, draft: Draft, candidate: Candidate, recipient: Recipient, cause: Cause) -> None:
        """Plan a message, unless there is one of the occurrence already, or it would say nothing that was not said."""
        shard, user_id, active, occurrence, update, not_sent = candidate
        message_id = message_id_of(active.campaign, user_id, occurrence)
        if message_id in draft.ids or message_id in draft.kept:
            return
        # whoever a run meets in the same city is told the same
        texts = draft.texts.setdefault((cause.run_id, cause.city_id), {}) if cause.city_id else None
        message = self._judged(draft, active, recipient, occurrence, shard, message_id, update, texts=texts)
        if update is not None and _said(message, update, not_sent):
            return
        cause.note(message)
        draft.ids.add(message_id)
        draft.planned.append(message)
        if update is not None and update.shown is not None and message.state in ("intent", "held"):
            draft.follows[message_id] = update.shown.message_id

    def release(self, draft: Draft, held: Held, recipient: Recipient | None) -> None:
        """Judge a held message anew, as everything is now; only its id and what caused it stay."""
        old, active = held.message, draft.rules.by_id.get(held.message.campaign)
        if active is None:
            draft.released.append(not_sent(old, Reason.PAUSED, self._clock.now_ms()))
        elif recipient is None:
            draft.released.append(not_sent(old, Reason.NO_DEVICE, self._clock.now_ms()))
        elif held.superseded:
            draft.released.append(not_sent(old, Reason.SUPERSEDED, self._clock.now_ms()))
        elif not held.concerned:
            draft.released.append(not_sent(old, Reason.LEFT_AUDIENCE, self._clock.now_ms()))
        else:
            step = Step(old.action, old.sound, "held") if old.chain else FIRST
            message = self._judged(
                draft, active, recipient, held.occurrence, old.shard, old.message_id, step=step, device_id=old.device_id
            )
            message.chain, message.told = old.chain, old.told
            Cause(old.cause_gen, old.cause_seq, old.cause_src, old.run_id, old.city_id).note(message)
            message.release_at = message.release_at or old.release_at
            draft.released.append(message)

    def tapped(self, draft: Draft, shard: int, user_id: str, message_id: str, at: int) -> None:
        """Note a tap, also for what the same batch plans behind it."""
        draft.taps.append((shard, user_id, message_id, at))
        if past := draft.past.get((shard, user_id)):
            past[:] = [replace(one, opened=True) if one.message_id == message_id else one for one in past]

    def _judged(
        self,
        draft: Draft,
        active: Active,
        recipient: Recipient,
        occurrence: Occurrence,
        shard: int,
        message_id: str,
        update: Update | None = None,
        step: Step = FIRST,
        texts: Texts | None = None,
        device_id: str = "",
    ) -> Message:
        if update is not None:
            step, device_id = update.step, update.shown.device_id if update.shown is not None else ""
        now, rules, key = self._clock.now_ms(), draft.rules, (shard, recipient.user_id)
        verdict = plan(
            active.campaign,
            recipient,
            occurrence,
            now,
            self._book.salt,
            active.compiled,
            rules.consent_required,
            rules.limits,
            draft.past.get(key, ()),
            message_id,
            step,
            device_id,
            texts,
        )
        if isinstance(verdict, Send) and verdict.counts and rules.history_days:
            reserved = Past(verdict.message_id, PENDING, active.campaign.category, verdict.content_key)
            draft.past.setdefault(key, []).append(reserved)
        message = messages.from_verdict(
            verdict, active.campaign, shard=shard, user_id=recipient.user_id, occurrence=occurrence, now_ms=now
        )
        message.action, message.sound = step.action or "show", step.sound
        if isinstance(verdict, Defer):
            message.device_id = device_id
        if update is not None:
            message.chain, message.told = update.name, encode(update.told).decode() if update.told is not None else ""
        return message

    def _since(self, draft: Draft) -> int:
        return self._clock.now_ms() - draft.rules.history_days * DAY_MS


def _begun(draft: Draft, row: FeedRow) -> Iterator[Active]:
    """The campaigns that the row sets going."""
    for active in draft.rules.by_key.get(key_of(row), ()):
        if matches(active.campaign.trigger, row):
            yield active


def _said(message: Message, update: Update, not_sent: str) -> bool:
    """Whether the message tells nothing: silently what stands on the phone, or once more why nothing is sent.

    Who is held out is exposed by what would sound."""
    if message.state == "intent":
        return update.needless(message.title, message.body, message.expires_at)
    if message.state == "suppressed":
        return message.reason == not_sent
    return message.state == "held_out" and not update.step.sound
