"""How an intent becomes an attempt, a call to the provider, and an outcome — in this order, each committed.

The attempt is committed before the socket is written to, so that after any crash it is known which pushes
may have gone out. What becomes of those is the campaign's to say: again under the same collapse id, or
given up as unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from services.notifier import messages
from services.notifier.book import CampaignBook
from services.notifier.domain.gates import Reason, audience, consent, device
from services.notifier.domain.quiet_hours import quiet_until, zone_named
from services.notifier.domain.recipient import Recipient, device_for
from services.notifier.messages import Message, OutcomeRow
from services.notifier.succession import Succession
from services.notifier.transports.push import (
    Outcome,
    Push,
    Refused,
    Sent,
    Throttled,
    TokenDead,
    Transport,
    Unauthorised,
    Unavailable,
    Unknown,
)
from shared.data.db import Connection, Pool, is_moment
from shared.data.shard_owner import Owner
from shared.kafka.fenced_reader import FencedReader
from shared.kafka.relay import Relay
from shared.kafka.shard_consumer import Reassigned
from shared.process.clock import Clock, monotonic
from shared.process.crash import POINTS
from shared.process.errors import Transient
from shared.process.metrics import (
    ANSWERS,
    IN_FLIGHT,
    MESSAGE_SECONDS,
    MESSAGES,
    SEND_SECONDS,
    SENDING,
    SUPPRESSED,
    WAITING,
    begin_each,
)
from shared.process.retry import backoff_seconds

log = logging.getLogger("perennial.dispatch")

_BATCH = 500
_WAITED_SECONDS = 5.0
"""A message older than this when its turn comes is judged again."""
_MOST_ATTEMPTS = 8
_GATHER_SECONDS = 0.1
_GATHER_OUTCOMES = 200
_MOST_UNWRITTEN = 400
"""So many outcomes at most are known here alone: what a crash may lose of them, and of the calls under way."""
_FAREWELL_SECONDS = 3.0
_BEHIND_SECONDS = 0.05
"""How often a message that goes on with one on the wire is looked at again."""
_QUIET_SECONDS = 5.0
"""How often a message that ran into quiet hours is looked at again: product time may run faster than real time."""
_ANSWERS: dict[type[Outcome], str] = {
    Sent: "sent",
    TokenDead: "token_dead",
    Refused: "refused",
    Throttled: "throttled",
    Unauthorised: "unauthorised",
    Unavailable: "unavailable",
    Unknown: "unknown",
}


class Dispatcher:
    """`reader` and `recipient` are set by the composition root."""

    reader: FencedReader
    recipient: Callable[[int, str], Awaitable[Recipient | None]]

    def __init__(
        self, *, pool: Pool, book: CampaignBook, transport: Transport, relay: Relay[OutcomeRow], clock: Clock, most: int
    ) -> None:
        self._pool, self._book, self._transport, self._relay, self._clock = pool, book, transport, relay, clock
        self._slots = asyncio.Semaphore(most)
        self._queue: deque[Message] = deque()
        self._succession = Succession()
        self._later: list[tuple[float, Message]] = []
        self._work = asyncio.Event()
        self._shards: frozenset[int] = frozenset()
        self._in_flight: dict[str, asyncio.Task[None]] = {}
        self._stopped: set[str] = set()
        self._finished: dict[str, Message] = {}
        self._settle_wanted = asyncio.Event()
        self._many_finished = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._dead: list[tuple[int, str, str]] = []
        self._pause_until = 0.0
        begin_each(ANSWERS, _ANSWERS.values())
        begin_each(MESSAGES, ("sent", "suppressed", "held_out", "failed", "unknown", "opened"))
        begin_each(SUPPRESSED, Reason)
        WAITING.set_function(lambda: float(len(self._queue) + len(self._later)))
        IN_FLIGHT.set_function(lambda: float(len(self._in_flight)))
        SENDING.set_function(lambda: float(book.sending))

    # -- owning ---------------------------------------------------------------------------------------

    async def own(self, shards: Iterable[int]) -> None:
        """Take up what was left open: intents are sent, attempts without outcome end as their campaign says."""
        self._shards = frozenset(shards)
        for message in await messages.open_messages(self._pool, self._shards):
            active = self._book.by_id.get(message.campaign)
            message.safety = active is not None and active.campaign.safety
            if message.message_id in self._in_flight or message.message_id in self._finished:
                continue  # on the wire from here, or answered and only not yet written
            if message.state == "attempted":
                message.state = "intent" if message.on_unknown == "retry" else "unknown"
                message.reason = "no_answer_before_a_restart"
                self._finished[message.message_id] = message
            else:
                self._queue.append(message)
            if message.state == "intent":
                self._succession.put(message)
        self._work.set()
        self._settle_wanted.set()

    def disown(self) -> None:
        self._shards = frozenset()
        self._room.set()
        self._queue.clear()
        self._later.clear()
        self._succession.clear()

    def put(self, several: list[Message]) -> None:
        for message in several:
            self._succession.put(message)
        self._queue.extend(several)
        if several:
            self._work.set()

    def stop(self, message_ids: Collection[str]) -> None:
        """Send none of these, as far as they are not on the wire: their users are erased, and so are their rows."""
        waiting = [m for m in (*self._queue, *(m for _, m in self._later)) if m.message_id in message_ids]
        self._queue = deque(m for m in self._queue if m.message_id not in message_ids)
        self._later = [(at, m) for at, m in self._later if m.message_id not in message_ids]
        for message in waiting:
            message.state = "suppressed"
            self._succession.ends(message)
        self._stopped.update(set(message_ids) - {m.message_id for m in waiting})

    def take_dead_tokens(self) -> list[tuple[int, str, str]]:
        """(shard, user, token) the provider called dead, of shards that are still ours."""
        dead, self._dead = self._dead, []
        return [d for d in dead if d[0] in self._shards]

    # -- sending --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send for ever."""
        while True:
            self._release()
            if not self._queue or not self._book.sending or monotonic() < self._pause_until:
                self._work.clear()
                if self._queue or self._later:
                    await asyncio.sleep(0.05)
                else:
                    await self._work.wait()
                continue
            batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            await self._attempt([m for m in batch if m.shard in self._shards])

    def _release(self) -> None:
        now = monotonic()
        due = [m for at, m in self._later if at <= now]
        if due:
            self._later = [(at, m) for at, m in self._later if at > now]
            self._queue.extend(due)

    async def _attempt(self, batch: list[Message]) -> None:
        now = self._clock.now_ms()
        try:
            ready = await self._still_good(batch, now)
        except Exception as error:
            if not is_moment(error):
                raise
            # what was not judged is still an intent, and is taken up again with the shards
            self.reader.doubt(error)
            return
        if not ready:
            return
        noted: set[str] = set()
        shards = sorted({m.shard for m in ready})

        async def write(connection: Connection, _: Mapping[int, Owner]) -> None:
            noted.update(await messages.attempt(connection, ready, shards, now))

        try:
            await self.reader.commit(shards, {}, write)
        except (Reassigned, Transient) as error:
            self.reader.doubt(error)
            return
        for message in ready:
            if message.message_id in noted:
                message.state, message.attempts = "attempted", message.attempts + 1
                self._succession.begins(message)
                await self._room.wait()
                await self._slots.acquire()
                task = asyncio.create_task(self._send(message))
                self._in_flight[message.message_id] = task

    async def _still_good(self, batch: list[Message], now: int) -> list[Message]:
        """Those of the batch that may go out now; the others are finished, or wait."""
        ready: list[Message] = []
        waited = [m for m in batch if m.run_id and _waited(m, now)]
        left = await messages.left(self._pool, waited) if waited else set()
        going_on = [m for m in batch if m.chain and m.action != "show"]
        shows = await messages.shows(self._pool, going_on) if going_on else {}
        for message in batch:
            if now < message.expires_at and self._kept_quiet(message, now):
                continue
            if self._succession.must_wait(message):
                self._later.append((monotonic() + _BEHIND_SECONDS, message))
                continue
            # while it was planned, what it goes on from may have gone to another device than that was planned for
            device_id = shows.get(message.message_id, message.device_id)
            moved, message.device_id = device_id != message.device_id, device_id
            reason = await self._judge_again(message, now, left, moved)
            if reason is None:
                ready.append(message)
            else:
                _not_sent(message, "suppressed", reason.value)
                self._finish(message)
        return ready

    def _kept_quiet(self, message: Message, now: int) -> bool:
        """Whether its user's quiet hours began before it was sent; it then stays an intent, and is looked at again."""
        if not message.zone:
            return False
        hours = self._book.in_force.limits.quiet_hours
        until = quiet_until(hours, zone_named(message.zone, hours.zone), now)
        if until is None:
            return False
        self._later.append((monotonic() + min(_QUIET_SECONDS, (until - now) / 1000), message))
        return True

    async def _judge_again(self, message: Message, now: int, left: set[str], moved: bool) -> Reason | None:
        """Why the message must not go out after all; asked in full only if it had to wait, or its device is another
        (`moved`). `left`: ids of those whose user is no longer in their audience."""
        if self._succession.superseded(message):
            return Reason.SUPERSEDED
        if now >= message.expires_at:
            return Reason.EXPIRED
        if message.message_id in left:
            return Reason.LEFT_AUDIENCE
        if not moved and not _waited(message, now):
            return None
        recipient = await self.recipient(message.shard, message.user_id)
        if recipient is None:
            return Reason.NO_DEVICE
        active = self._book.by_id.get(message.campaign)
        meant = [] if active is None else [audience(active.campaign, recipient)]
        for check in (*meant, consent(recipient, self._book.consent_required), device(recipient)):
            if not check.passed:
                return check.reason
        chosen = device_for(recipient, message.action, message.device_id)
        message.device_id, message.token = chosen.id, chosen.token
        return None

    async def _send(self, message: Message) -> None:
        started = monotonic()
        try:
            if self._kept_quiet(message, self._clock.now_ms()):  # it may have waited for a slot
                message.state = "intent"
                self._finish(message)
                return
            POINTS.passing("notifier.before_wire")
            if message.message_id in self._stopped:
                return
            outcome = await self._transport.send(
                Push(
                    message.message_id,
                    message.token,
                    message.title,
                    message.body,
                    {"message_id": message.message_id, "campaign": message.campaign},
                    message.collapse_id,
                    max(0, (message.expires_at - self._clock.now_ms()) // 1000),
                    message.safety,
                    message.action,
                    message.sound,
                )
            )
            POINTS.passing("notifier.after_wire")
            self._conclude(message, outcome)
        finally:
            SEND_SECONDS.observe(monotonic() - started)
            self._succession.ends(message)
            self._in_flight.pop(message.message_id, None)
            self._stopped.discard(message.message_id)
            self._slots.release()

    def _conclude(self, message: Message, outcome: Outcome) -> None:
        """What the provider's answer means for the message, its user and the next sends."""
        message.provider = self._transport.name
        ANSWERS.labels(_ANSWERS[type(outcome)]).inc()
        match outcome:
            case Sent():
                message.state, message.reason, message.provider_ref = "sent", "", outcome.provider_ref
                MESSAGE_SECONDS.observe(max(0, self._clock.now_ms() - message.planned_at) / 1000)
            case TokenDead():
                _not_sent(message, "failed", "token_dead")
                self._dead.append((message.shard, message.user_id, message.token))
            case Refused():
                _not_sent(message, "failed", f"refused:{outcome.reason}")
            case Unknown() if message.on_unknown == "give_up":
                message.state, message.reason = "unknown", outcome.reason
            case Unknown():
                message.reason = outcome.reason
                self._again(message, None)
            case Throttled():
                self._pause_until = monotonic() + outcome.retry_after_seconds
                self._again(message, outcome.retry_after_seconds, counted=False)
            case Unauthorised():
                log.error("the provider refuses our credentials: %s", outcome.reason)
                self._pause_until = monotonic() + 5
                self._again(message, 5.0, counted=False)
            case Unavailable():
                self._again(message, outcome.retry_after_seconds)
        self._finish(message)

    def _again(self, message: Message, after_seconds: float | None, *, counted: bool = True) -> None:
        """Back to waiting; given up once it was tried often enough, where that says something of the message, or where
        a newer one has taken its place."""
        if self._succession.superseded(message):
            _not_sent(message, "suppressed", Reason.SUPERSEDED)
            return
        if counted and message.attempts >= _MOST_ATTEMPTS:
            _not_sent(message, "failed", "too_many_attempts")
            return
        message.state = "intent"
        wait = after_seconds if after_seconds is not None else backoff_seconds(message.attempts, 0.5, 60.0)
        self._later.append((monotonic() + wait, message))
        self._work.set()

    # -- outcomes -------------------------------------------------------------------------------------

    def _finish(self, message: Message) -> None:
        self._finished[message.message_id] = message
        self._settle_wanted.set()
        if len(self._finished) >= _GATHER_OUTCOMES:
            self._many_finished.set()
        if len(self._finished) >= _MOST_UNWRITTEN:
            self._room.clear()

    async def settle(self) -> None:
        """Write outcomes for ever, in batches."""
        while True:
            await self._settle_wanted.wait()
            # nobody waits for an outcome; plans and attempts want the lock
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GATHER_SECONDS):
                    await self._many_finished.wait()
            self._many_finished.clear()
            self._settle_wanted.clear()
            ours = [m for m in self._finished.values() if m.shard in self._shards]
            for start in range(0, len(ours), 5000):
                await self._settle(ours[start : start + 5000])
            for message_id in [i for i, m in self._finished.items() if m.shard not in self._shards and self._shards]:
                del self._finished[message_id]  # the shard's new owner decides
            if len(self._finished) < _MOST_UNWRITTEN:
                self._room.set()

    async def finish(self) -> None:
        """At an orderly end: write down what the provider answers within moments. What is then still on the wire is
        the next owner's to judge."""
        if self._in_flight:
            await asyncio.wait(self._in_flight.values(), timeout=_FAREWELL_SECONDS)
        ours = [m for m in self._finished.values() if m.shard in self._shards]
        if ours:
            await self._settle(ours)

    async def _settle(self, batch: list[Message]) -> None:
        shards = sorted({m.shard for m in batch})
        states = {m.message_id: m.state for m in batch}
        rows: list[OutcomeRow] = []

        async def write(connection: Connection, owners: Mapping[int, Owner]) -> None:
            now, real = self._clock.now_ms(), self._clock.real_ms()
            settled = await messages.settle(connection, batch, shards, now)
            rows.extend(
                messages.number(owners[message.shard], message, message.state, now, real)
                for message in batch
                if message.message_id in settled and message.state != "intent"
            )
            if rows:
                await messages.append_outcomes(connection, rows)

        try:
            POINTS.passing("notifier.before_outcome")
            await self.reader.commit(shards, {}, write)
        except (Reassigned, Transient) as error:
            self.reader.doubt(error)
            await asyncio.sleep(0.2)
            self._settle_wanted.set()
            return
        for message in batch:
            if self._finished.get(message.message_id) is message and states[message.message_id] == message.state:
                del self._finished[message.message_id]
        if again := [m for m in batch if m.state == "intent" and m.shard in self._shards]:
            scheduled = {m.message_id for _, m in self._later} | {m.message_id for m in self._queue}
            self.put([m for m in again if m.message_id not in scheduled])
        for row in rows:
            MESSAGES.labels(row.outcome).inc()
            if row.outcome == "suppressed":
                SUPPRESSED.labels(row.reason).inc()
            self._relay.put(row.shard, [row])


def _waited(message: Message, now: int) -> bool:
    return now - message.planned_at >= _WAITED_SECONDS * 1000


def _not_sent(message: Message, state: str, reason: str) -> None:
    """End the message as `state`; as unknown where an attempt went unanswered (its reason says so): it may have
    arrived."""
    message.state, message.reason = ("unknown", message.reason) if message.reason else (state, reason)
