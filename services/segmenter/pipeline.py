"""The way of a decision to a user's state: load, fold, commit, publish — and the sweep of who falls due."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping

from services.segmenter import store
from services.segmenter.domain.compiled import Compiled, InForce
from services.segmenter.domain.decide import decide, needs_cold
from services.segmenter.domain.dedup import KEEP_HOURS, needs_spill
from services.segmenter.domain.state import decode_cold, decode_hot
from services.segmenter.publish import Publisher
from services.segmenter.shard import DAY_HOURS, HOUR_MS, Draft, Entry, ShardState
from services.segmenter.sweeper import Sweeper
from shared.contracts.events import Accepted, Decision, Rejected, TimeRecord, decode_decision
from shared.contracts.topics import Topic
from shared.data.control import RulesBook
from shared.data.db import Connection, Pool, transaction
from shared.data.ledger import LedgerRow, append, unsent
from shared.data.shard_owner import Owner, Position
from shared.kafka.chain import judge
from shared.kafka.fenced_reader import FencedReader, OwnedShard, batches
from shared.kafka.relay import Relay
from shared.kafka.shard_consumer import Polled
from shared.process.clock import Clock, monotonic
from shared.process.metrics import GAPS, REPEATS, SEGMENTER_CHANGES, SEGMENTER_EVENTS, WATERMARK_AGE

log = logging.getLogger("perennial.segmenter")

_NOTHING: frozenset[int] = frozenset()
_YIELD_EVERY = 500
_REPAIRS_SECONDS = 2.0
_FORGET_SECONDS = 3600.0
_PATIENCE = 3
"""How often one place may fail before its records are tried one by one."""


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
        most_cached: int,
        fault: str = "",
    ) -> None:
        self._pool, self._book, self._relay, self._publisher, self._clock = pool, rules, relay, publisher, clock
        self._most_cached, self._fault = most_cached, fault
        self._repairs_at = self._forgotten_at = 0.0
        self._shards: dict[int, ShardState] = {}
        self._compiled: dict[int, Compiled] = {}
        self._poison: set[tuple[int, int]] = set()
        self._failed_in_a_row = 0
        self._now_folding: tuple[int, int] | None = None
        self._told: dict[int, float] = {}
        self._sweeper = Sweeper(self)

    # -- owning ---------------------------------------------------------------------------------------

    async def take(self, connection: Connection, shards: Mapping[int, OwnedShard]) -> None:
        times = await store.times(connection, shards)
        versions = await store.versions(connection, shards)
        self._shards = {}
        for shard in shards:
            state = ShardState(shard)
            kept = times.get(shard)
            if kept is not None:
                state.watermark, state.last_tick = kept["watermark"], kept["last_tick"]
                state.rules_cursor = kept["rules_cursor"]
                history = [(since, await self._rules(version)) for since, version in versions.get(shard, []) if version]
                if history:
                    state.rules = InForce(history[-1][1], tuple(history))
            self._shards[shard] = state

    async def taken(self) -> None:
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
        self._shards = {}

    def suspect(self, error: Exception) -> None:
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= _PATIENCE and self._now_folding is not None:
            self._poison.add(self._now_folding)
            self._now_folding = None
            self._failed_in_a_row = 0

    # -- applying -------------------------------------------------------------------------------------

    async def handle(self, polled: Polled) -> None:
        # after repeated failure one record at a time, so that the one that fails is known
        pieces = [polled] if self._failed_in_a_row == 0 else batches(polled, 1)
        for piece in pieces:
            await self._relay.room()
            await self._apply(piece)
        self._failed_in_a_row = 0

    async def idle(self) -> None:
        await self._sweeper.step()
        self._tell_time()
        if monotonic() - self._repairs_at > _REPAIRS_SECONDS:
            self._repairs_at = monotonic()
            await self._repair()
        if self._shards and monotonic() - self._forgotten_at > _FORGET_SECONDS:
            self._forgotten_at = monotonic()
            await self._forget_spilled()

    async def _forget_spilled(self) -> None:
        """Drop the spilled message ids that no longer count for any of these shards."""
        oldest = min(state.watermark for state in self._shards.values()) // HOUR_MS - KEEP_HOURS
        await store.drop_spilled(self._pool, list(self._shards), oldest // DAY_HOURS)

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
        await self._load(decisions)
        drafts = {shard: self.draft(shard) for shard in polled.positions}
        positions = {}
        for shard, draft in drafts.items():
            records = polled.records.get(shard, [])
            last_src = await self._fold(draft, decisions.get(shard, []))
            positions[shard] = self.reader.advanced(
                shard, records[-1] if records else None, polled.positions[shard], last_src=last_src
            )
        await self.commit(drafts, positions)

    def draft(self, shard: int) -> Draft:
        owned = self.reader.shards[shard]
        return Draft(self._shards[shard], owned.owner, owned.position, self._clock.real_ms())

    async def _fold(self, draft: Draft, decisions: list[Decision]) -> int:
        """Fold one shard's decisions in order; the last `src` applied."""
        state = draft.state
        last = self.reader.shards[state.shard].position.last_src
        for count, decision in enumerate(decisions, 1):
            if count % _YIELD_EVERY == 0:
                await asyncio.sleep(0)  # heartbeats share this loop
            if isinstance(decision, TimeRecord):
                if decision.src <= last:
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
            await self._adopt(draft, decision.rules, last)
            self._now_folding = (state.shard, decision.src)
            if isinstance(decision, Accepted):
                self._event(draft, decision)
            elif isinstance(decision, Rejected):
                draft.dead_letter(
                    decision.user_id, decision.reason, decision.message_id, decision.source, decision.received_at,
                    decision.src,
                )  # fmt: skip
            last = decision.src
        return last

    def _event(self, draft: Draft, event: Accepted) -> None:
        state, user_id = draft.state, event.user_id
        assert state.rules is not None
        if (state.shard, event.src) in self._poison:
            draft.dead_letter(user_id, "bug:decide", event.message_id, event.source, event.received_at, event.src)
            log.critical("poison record set aside", extra={"fields": {"shard": state.shard, "src": event.src}})
            return
        if event.name == self._fault:
            raise ArithmeticError(f"planted fault for {event.name}")
        entry = state.users[user_id]
        before = entry.hot
        outcome = decide(
            before,
            entry.cold,
            event,
            max(event.received_at, state.last_tick),
            state.rules,
            entry.spilled or _NOTHING,
        )
        SEGMENTER_EVENTS.labels("duplicate" if outcome.duplicate else "applied").inc()
        if outcome.hot is before:
            return
        entry.hot = outcome.hot
        if outcome.cold is not None:
            entry.cold = outcome.cold
            draft.new_cold.add(user_id)
        if outcome.spilled is not None:
            message_hash, hour = outcome.spilled
            entry.spilled = (entry.spilled or set()) | {message_hash}
            draft.spilled.append((state.shard, user_id, hour // DAY_HOURS, message_hash))
        draft.user(user_id, entry, before, outcome.changes, event.src)

    async def _adopt(self, draft: Draft, version: int, at_src: int) -> None:
        """Enter a newer rules version: a tick for everyone, noticed user by user."""
        state = draft.state
        if version <= state.version:
            return
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

    # -- loading --------------------------------------------------------------------------------------

    async def _load(self, decisions: Mapping[int, list[Decision]]) -> None:
        """Have every user these decisions touch in memory, with the cold part and spilled ids where needed."""
        missing = {
            (shard, decision.user_id)
            for shard, several in decisions.items()
            for decision in several
            if isinstance(decision, Accepted) and decision.user_id not in self._shards[shard].users
        }
        if missing:
            found = await store.load(self._pool, sorted(missing))
            for shard, user_id in missing:
                kept = found.get((shard, user_id))
                self._shards[shard].users[user_id] = (
                    Entry(decode_hot(kept[1]), bucket=kept[0], known=True)
                    if kept is not None
                    else Entry(cold_known=True, spilled=set())
                )
        await self._load_rest(decisions)

    async def _load_rest(self, decisions: Mapping[int, list[Decision]]) -> None:
        cold: dict[store.Key, Entry] = {}
        spilled: dict[store.Key, Entry] = {}
        oldest: list[int] = []
        for shard, several in decisions.items():
            users = self._shards[shard].users
            for event in several:
                if not isinstance(event, Accepted):
                    continue
                entry = users[event.user_id]
                if not entry.cold_known and needs_cold(entry.hot, event):
                    cold[shard, event.user_id] = entry
                hour = event.received_at // HOUR_MS
                if entry.spilled is None and entry.hot is not None and needs_spill(entry.hot.spilled_hour, hour):
                    spilled[shard, event.user_id] = entry
                    oldest.append(hour - KEEP_HOURS)
        if cold:
            rows = await store.load_cold(self._pool, sorted(cold))
            for key, entry in cold.items():
                entry.cold_known = True
                entry.cold = decode_cold(rows[key]) if key in rows else None
        if spilled:
            ids = await store.load_spilled(self._pool, sorted(spilled), min(oldest) // DAY_HOURS)
            for key, entry in spilled.items():
                entry.spilled = ids[key]

    # -- writing --------------------------------------------------------------------------------------

    async def commit(self, drafts: Mapping[int, Draft], positions: Mapping[int, Position]) -> None:
        """Write these drafts and positions in one transaction, then publish their rows."""

        async def write(connection: Connection, owners: Mapping[int, Owner]) -> None:
            for shard, draft in drafts.items():
                draft.number(owners[shard])
            users = [row for draft in drafts.values() for row in draft.user_rows()]
            if users:
                await store.save_users(connection, users)
            rows = [row for draft in drafts.values() for row in draft.rows]
            if rows:
                await append(connection, rows)
            spilled = [row for draft in drafts.values() for row in draft.spilled]
            if spilled:
                await store.save_spilled(connection, spilled)
            tallies: defaultdict[tuple[int, str, str], int] = defaultdict(int)
            members: dict[tuple[int, int, str, str], int | None] = {}
            for draft in drafts.values():
                tallies.update(draft.tallies)
                members.update(draft.members)
            await store.add_tallies(connection, tallies)
            if members:
                await store.move_members(connection, members)
            ticks = [tick for draft in drafts.values() for tick in draft.ticks]
            if ticks:
                await store.log_ticks(connection, ticks)
            times = [draft.state.times() for draft in drafts.values() if draft.state.times() != draft.times_before]
            if times:
                await store.save_times(connection, times)

        await self.reader.commit(drafts, positions, write)
        for shard, draft in drafts.items():
            self._relay.put(shard, draft.rows)
            for row in draft.rows:
                SEGMENTER_CHANGES.labels(row.kind).inc()
            self._trim(draft.state)

    def _trim(self, state: ShardState) -> None:
        """Keep the cache within its bound: the users longest in it go first."""
        most = max(1000, self._most_cached // max(1, len(self._shards)))
        while len(state.users) > most:
            del state.users[next(iter(state.users))]

    def _tell_time(self) -> None:
        """Tell the feed's readers each shard's watermark, at most once a second."""
        now = monotonic()
        for shard, state in self._shards.items():
            if state.watermark > state.told_time and now - self._told.get(shard, 0.0) >= 1.0:
                self._told[shard] = now
                state.told_time = state.watermark
                owner = self.reader.shards[shard].owner
                self._relay.put(shard, [self._publisher.time(owner.gen, owner.next_seq - 1, state.watermark)])
        if self._shards:
            oldest = min(state.watermark for state in self._shards.values())
            WATERMARK_AGE.set(max(0, self._clock.now_ms() - oldest) / 1000 if oldest else 0)

    @property
    def shards(self) -> Mapping[int, ShardState]:
        return self._shards

    @property
    def pool(self) -> Pool:
        return self._pool

    @property
    def clock(self) -> Clock:
        return self._clock
