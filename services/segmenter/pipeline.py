"""The way of a decision to a user's state: load, fold, commit, publish — and the sweep of who falls due."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from services.segmenter import erasing, store
from services.segmenter.domain.compiled import Compiled, InForce
from services.segmenter.domain.decide import decide
from services.segmenter.domain.dedup import KEEP_HOURS
from services.segmenter.domain.standin import instead
from services.segmenter.loading import load
from services.segmenter.merger import Merger
from services.segmenter.publish import Publisher
from services.segmenter.saving import save
from services.segmenter.shard import DAY_HOURS, HOUR_MS, NOTHING, Draft, ShardState
from services.segmenter.sweeper import Sweeper
from shared.contracts.events import (
    Accepted,
    Decision,
    Erase,
    Readmit,
    Rejected,
    TimeRecord,
    decode_decision,
)
from shared.contracts.topics import SPECS, Topic
from shared.data.control import RulesBook
from shared.data.db import Connection, Pool, transaction
from shared.data.ledger import LedgerRow, unsent
from shared.data.shard_owner import Owner, Position
from shared.kafka.chain import judge
from shared.kafka.fenced_reader import FencedReader, OwnedShard
from shared.kafka.relay import Relay
from shared.kafka.shard_consumer import Polled
from shared.kafka.side_input import SideInput
from shared.kafka.suspects import Suspects
from shared.process.clock import Clock, monotonic
from shared.process.metrics import (
    CACHED_USERS,
    ERASURES,
    EVENT_AGE,
    GAPS,
    MERGES,
    REPEATS,
    SEGMENTER_CHANGES,
    SEGMENTER_EVENTS,
    WATERMARK_AGE,
    begin_each,
)

log = logging.getLogger("perennial.segmenter")

_YIELD_EVERY = 500
_REPAIRS_SECONDS = 2.0
_FORGET_SECONDS = 3600.0
_RAW_KEPT_MS = next(spec.retention_ms for spec in SPECS if spec.topic is Topic.RAW)


class Segmenter:
    """The worker of a `FencedReader` on `app.events.v1`; `reader` is set by the composition root."""

    reader: FencedReader

    def __init__(
        self,
        pool: Pool,
        rules: RulesBook,
        relay: Relay[LedgerRow],
        publisher: Publisher,
        clock: Clock,
        *,
        merges: SideInput,
        all_shards: int,
        most_cached: int,
        fault: str = "",
    ) -> None:
        self._pool, self._book, self._relay, self._publisher, self._clock = pool, rules, relay, publisher, clock
        self._most_cached, self._fault = most_cached, fault
        self._repairs_at = self._forgotten_at = 0.0
        self._shards: dict[int, ShardState] = {}
        self._compiled: dict[int, Compiled] = {}
        self._suspects = Suspects()
        self._told: dict[int, float] = {}
        self._sweeper = Sweeper(self)
        self.merger = Merger(self, merges, all_shards)
        self._oldest = 0
        self._age = EVENT_AGE.labels("segmenter")
        begin_each(SEGMENTER_EVENTS, ("applied", "duplicate", "forwarded", "suppressed"))
        WATERMARK_AGE.set_function(self._watermark_age)
        CACHED_USERS.set_function(lambda: float(sum(len(state.users) for state in self._shards.values())))

    # -- owning ---------------------------------------------------------------------------------------

    async def take(self, connection: Connection, shards: Mapping[int, OwnedShard]) -> None:
        times = await store.times(connection, shards)
        versions = await store.versions(connection, shards)
        salt, suppressed = await erasing.suppressed(connection, shards)
        self._shards = {}
        for shard in shards:
            state = ShardState(shard, salt=salt, suppressed=suppressed[shard])
            kept = times.get(shard)
            if kept is not None:
                state.watermark, state.last_tick = kept["watermark"], kept["last_tick"]
                state.rules_cursor = kept["rules_cursor"]
                history = [(since, await self._rules(version)) for since, version in versions.get(shard, []) if version]
                if history:
                    state.rules = InForce(history[-1][1], tuple(history))
            self._shards[shard] = state
        log_id = next(iter(shards.values())).position.log_id
        await self.merger.take(connection, self._shards, log_id)

    async def taken(self) -> None:
        await self.merger.taken(self._shards)
        self._relay.own(self._shards)
        for shard, owned in self.reader.shards.items():
            await self._publish_behind(shard, owned.owner.relayed)

    async def _publish_behind(self, shard: int, seq: int) -> None:
        """Queue every committed row behind `seq`, in order."""
        end = self.reader.shards[shard].owner.next_seq - 1
        while seq < end:
            async with transaction(self._pool) as connection:
                rows = await unsent(connection, shard, seq)
            if not rows:
                return
            self._relay.put(shard, rows)
            seq = rows[-1].seq

    def drop(self) -> None:
        self._relay.disown_all()
        self.merger.drop()
        self._suspects.release()
        self._shards = {}

    def suspect(self, error: Exception) -> None:
        self._suspects.failed()
        self.merger.suspect()

    # -- applying -------------------------------------------------------------------------------------

    async def handle(self, polled: Polled) -> None:
        for piece in self._suspects.pieces(polled):
            await self._relay.room()
            await self._apply(piece)

    async def idle(self) -> None:
        await self.merger.step()
        await self._sweeper.step()
        self._tell_time()
        if monotonic() - self._repairs_at > _REPAIRS_SECONDS:
            self._repairs_at = monotonic()
            await self._repair()
        if self._shards and monotonic() - self._forgotten_at > _FORGET_SECONDS:
            self._forgotten_at = monotonic()
            await self._forget_old()

    async def _forget_old(self) -> None:
        """Drop the spilled message ids that no longer count for any of these shards, and what a refold of raw, as long
        as that is kept, does not ask for."""
        oldest = min(state.watermark for state in self._shards.values()) // HOUR_MS - KEEP_HOURS
        await store.drop_spilled(self._pool, list(self._shards), oldest // DAY_HOURS)
        await store.drop_merges(self._pool, list(self._shards), self._clock.real_ms() - _RAW_KEPT_MS)

    async def _repair(self) -> None:
        """Publish again what a reader of the feed misses (`perennial repair`)."""
        for row in await self._pool.fetch(
            "SELECT shard, after FROM control.repair WHERE topic = $1 AND done_at IS NULL", Topic.FEED.value
        ):
            if row["shard"] in self._shards:
                await self._publish_behind(row["shard"], row["after"])
                await self._pool.execute(
                    "UPDATE control.repair SET done_at = now() WHERE topic = $1 AND shard = $2",
                    Topic.FEED.value,
                    row["shard"],
                )

    async def _apply(self, polled: Polled) -> None:
        decisions = {
            shard: [decode_decision(r.value or b"") for r in records] for shard, records in polled.records.items()
        }
        self._suspects.trying(polled)
        self._suspects.replace(polled, decisions, instead)
        await load(self._pool, self._shards, decisions)
        drafts = {shard: self.draft(shard) for shard in polled.positions}
        positions = {}
        for shard, draft in drafts.items():
            records = polled.records.get(shard, [])
            last = self.reader.shards[shard].position.last_src
            last_src = await self.fold(draft, decisions.get(shard, []), last)
            positions[shard] = self.reader.advanced(
                shard, records[-1] if records else None, polled.positions[shard], last_src=last_src
            )
        await self.commit(drafts, positions)
        self._tell_age(decisions)

    def _tell_age(self, decisions: Mapping[int, list[Decision]]) -> None:
        """How old the first event of each shard's batch is, it being committed."""
        now = self._clock.now_ms()
        for several in decisions.values():
            first = next((d for d in several if isinstance(d, Accepted) and d.mode != "replay"), None)
            if first is not None:
                self._age.observe(max(0, now - first.received_at) / 1000)

    def draft(self, shard: int) -> Draft:
        owned = self.reader.shards[shard]
        return Draft(self._shards[shard], owned.owner, owned.position, self._clock.real_ms())

    async def fold(self, draft: Draft, decisions: Sequence[Decision], last: int) -> int:
        """Fold one shard's decisions in order behind `last`, whose users are loaded; the last `src` applied."""
        state, newest = draft.state, 0
        for count, decision in enumerate(decisions, 1):
            if count % _YIELD_EVERY == 0:
                await asyncio.sleep(0)  # heartbeats share this loop
            if isinstance(decision, TimeRecord):
                if decision.src <= last:
                    if decision.rules > state.version:
                        await self._adopt(draft, decision.rules, last)
                    state.watermark = max(state.watermark, decision.as_of)
                continue
            link = judge(last, decision.prev, decision.src)
            if link != "apply":
                (REPEATS if link == "repeat" else GAPS).labels("segmenter").inc()
                if link == "gap":
                    log.error(
                        "decisions are missing; run `perennial repair`",
                        extra={"fields": {"shard": state.shard, "last": last, "prev": decision.prev}},
                    )
                continue
            if decision.rules > state.version:
                await self._adopt(draft, decision.rules, last)
            if isinstance(decision, Accepted):
                self.event(draft, decision, state.last_tick)
                newest = decision.received_at
            elif isinstance(decision, Rejected):
                if state.suppresses(decision.user_id):
                    draft.folded["suppressed"] += 1
                else:
                    draft.dead_letter(decision)
            elif isinstance(decision, Erase):
                entry = state.users[decision.user_id]
                self.merger.erased(draft, decision.user_id, entry, decision.received_at, decision.erasure_id)
                erasing.erase(draft, entry, decision)
            elif isinstance(decision, Readmit):
                erasing.readmit(draft, decision)
            last = decision.src
        state.newest = max(state.newest, newest)
        return last

    def event(self, draft: Draft, event: Accepted, since: int) -> None:
        """Fold one event of a user who is loaded; `since`: where the user stands at least."""
        state, user_id = draft.state, event.user_id
        assert state.rules is not None
        if event.name == self._fault:
            raise ArithmeticError(f"planted fault for {event.name}")
        entry = state.users[user_id]
        before = entry.hot
        if before is None and state.suppresses(user_id):
            draft.folded["suppressed"] += 1
            return
        if before is not None and before.merged_into:
            self.merger.forward(draft, user_id, entry, event)
            return
        outcome = decide(
            before,
            entry.cold,
            event,
            max(event.received_at, since),
            state.rules,
            entry.spilled or NOTHING,
        )
        draft.folded["duplicate" if outcome.duplicate else "applied"] += 1
        if outcome.hot is before:
            return
        entry.hot = outcome.hot
        if outcome.cold is not None:
            entry.cold = outcome.cold
            draft.new_cold.add(user_id)
        if outcome.spilled is not None:
            draft.spill(user_id, entry, *outcome.spilled)
        draft.user(user_id, entry, before, outcome.changes, outcome.daily, event.src)
        if event.identifies is not None and not outcome.duplicate:
            self.merger.identified(draft, user_id, entry, event)

    async def _adopt(self, draft: Draft, version: int, at_src: int) -> None:
        """Enter a newer rules version: a tick for everyone, noticed user by user."""
        state = draft.state
        with self._suspects.nobody():
            compiled = await self._rules(version)
        since = max(state.last_tick, state.watermark)
        history = state.rules.history if state.rules is not None else ()
        state.rules = InForce(compiled, (*history, (since, compiled)))
        state.rules_cursor = ""
        draft.tick(at_src, since)

    async def _rules(self, version: int) -> Compiled:
        if version not in self._compiled:
            self._compiled[version] = Compiled(version, await self._book.get(self._pool, version))
        return self._compiled[version]

    # -- writing --------------------------------------------------------------------------------------

    async def commit(self, drafts: Mapping[int, Draft], positions: Mapping[int, Position]) -> None:
        """Write these drafts and positions in one transaction, then publish their rows."""

        async def write(connection: Connection, owners: Mapping[int, Owner]) -> None:
            for shard, draft in drafts.items():
                draft.number(owners[shard])
            await save(connection, drafts.values())

        await self.reader.commit(drafts, positions, write)
        folded: Counter[str] = Counter()
        merges: Counter[str] = Counter()
        for shard, draft in drafts.items():
            self._relay.put(shard, draft.rows)
            folded.update(draft.folded)
            merges.update(draft.merges)
            self._trim(draft.state)
        for outcome, events in folded.items():
            SEGMENTER_EVENTS.labels(outcome).inc(events)
        for kind in (one.kind for draft in drafts.values() for one in draft.erasures):
            ERASURES.labels("erased" if kind == "erase" else "readmitted").inc()
        for outcome, users in merges.items():
            MERGES.labels(outcome).inc(users)
        for kind, rows in Counter(row.kind for draft in drafts.values() for row in draft.rows).items():
            SEGMENTER_CHANGES.labels(kind).inc(rows)

    def _trim(self, state: ShardState) -> None:
        """Keep the cache within its bound: the users longest in it go first."""
        most = max(1000, self._most_cached // max(1, len(self._shards)))
        while len(state.users) > most:
            del state.users[next(iter(state.users))]

    def _tell_time(self) -> None:
        """Tell the feed's readers, at most once a second, up to when each shard's events were folded and its users
        brought: what fell due by then lies before it in the feed."""
        now = monotonic()
        for shard, state in self._shards.items():
            if state.swept > state.told_time and now - self._told.get(shard, 0.0) >= 1.0:
                self._told[shard] = now
                state.told_time = state.swept
                owner = self.reader.shards[shard].owner
                self._relay.put(shard, [self._publisher.time(owner.gen, owner.next_seq - 1, state.swept)])
        if self._shards:
            # a shard that was told no time yet hides no other one
            told = [state.watermark for state in self._shards.values() if state.watermark]
            self._oldest = min(told, default=0)

    def _watermark_age(self) -> float:
        """Asked at each look: it grows while nothing is applied, also while shards are let go to be acquired anew."""
        if not self._oldest or self.reader.spare:
            return 0.0
        return max(0, self._clock.now_ms() - self._oldest) / 1000

    async def room(self) -> None:
        await self._relay.room()

    @property
    def shards(self) -> Mapping[int, ShardState]:
        return self._shards

    @property
    def pool(self) -> Pool:
        return self._pool

    @property
    def clock(self) -> Clock:
        return self._clock
