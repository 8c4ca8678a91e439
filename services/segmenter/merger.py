"""How users who turn out to be one become one, though their shards have different owners: asked, answered, folded.

The known user's shard asks the other one's (`Asked`). That one lays the other user down and answers with their state
(`Answered`), or says why not (`Declined`), in one transaction; the known user's shard folds the answer in. What comes
under the other id afterwards follows the same way (`Forwarded`). All of it goes through the ledger of the shard that
tells it, is relayed to `user.merge.v1` in order, and counts once: behind the greatest `(gen, seq)` heard of that shard.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from services.segmenter.domain import identity, merging
from services.segmenter.domain.passing import born, tick
from services.segmenter.domain.state import (
    ABSORBED,
    REFUSED,
    Change,
    Cold,
    decode_cold,
    decode_hot,
    encode_cold,
    encode_hot,
)
from services.segmenter.erasing import erase
from services.segmenter.loading import load, load_whole
from services.segmenter.shard import Draft, Entry, ShardState, raise_bucket
from shared.contracts.events import Accepted, Erase
from shared.contracts.identifiers import shard_of, suppression_hash
from shared.contracts.merges import Answered, Asked, Declined, Forgotten, Forwarded, MergeRow, Told, decode_merge
from shared.data.db import Connection
from shared.data.shard_owner import MERGES_READ, Position, positions
from shared.kafka.proof import behind
from shared.kafka.shard_consumer import Polled
from shared.kafka.side_input import SideInput
from shared.kafka.suspects import Suspects
from shared.process.crash import POINTS
from shared.process.metrics import MERGES, REPEATS, begin_each

if TYPE_CHECKING:
    from services.segmenter.pipeline import Segmenter

_MOST = 5000
_OUTCOMES = ("asked", "merged", "absorbed", "known", "elsewhere", "too_many", "suppressed", "forwarded")


class Merger:
    def __init__(self, segmenter: Segmenter, source: SideInput, shards: int) -> None:
        self._segmenter, self._source, self._shards = segmenter, source, shards
        self._suspects = Suspects()
        begin_each(MERGES, _OUTCOMES)

    # -- owning ---------------------------------------------------------------------------------------

    async def take(self, connection: Connection, states: Mapping[int, ShardState], log_id: str) -> None:
        """Read where these shards stand in what others tell them."""
        topic = self._source.topic
        kept = await positions(connection, MERGES_READ, states)
        for shard, state in states.items():
            several = kept.get(shard, {})
            state.told_at = several.pop(topic, Position(topic, log_id)).in_log(log_id, numbers_survive=True)
            state.heard = {int(source.rpartition("/")[2]): position for source, position in several.items()}

    async def taken(self, states: Mapping[int, ShardState]) -> None:
        await self._source.own({shard: state.told_at for shard, state in states.items()})

    def drop(self) -> None:
        self._source.disown()
        self._suspects.release()

    def suspect(self) -> None:
        self._suspects.failed()

    def read_up(self, state: ShardState) -> bool:
        """Whether all that others told the shard is applied: no one falls due by time before."""
        return self._source.read_up(state.shard, state.told_at.next_offset)

    # -- what an event sets going ---------------------------------------------------------------------

    def identified(self, draft: Draft, user_id: str, entry: Entry, event: Accepted) -> None:
        """The event says who the user is, and perhaps which other id is theirs as well."""
        assert entry.hot is not None and event.identifies is not None
        known = identity.identified(entry.hot)
        if known is not entry.hot:
            entry.hot = known
            draft.dirty[user_id] = entry
        cold = identity.claim(entry.cold or Cold(), user_id, event.identifies)
        if cold is None:
            return
        if not isinstance(cold, Cold):
            self._refused(draft, user_id, cold, event.occurred_at, event.message_id)
            draft.merges[cold] += 1
            return
        entry.cold = cold
        draft.new_cold.add(user_id)
        asked = Asked(event.identifies, user_id, event.message_id, event.occurred_at, event.received_at)
        self._tell(draft, user_id, asked, event.occurred_at, event.message_id)
        draft.merges["asked"] += 1

    def forward(self, draft: Draft, user_id: str, entry: Entry, event: Accepted) -> None:
        """The user is part of another one: the event is theirs, unless it came under this id before."""
        assert entry.hot is not None
        hot, evicted = identity.passed_on(entry.hot, event, entry.spilled or frozenset())
        draft.folded["duplicate" if hot is None else "forwarded"] += 1
        if hot is None:
            return
        entry.hot = hot
        draft.dirty[user_id] = entry
        if evicted is not None:
            draft.spill(user_id, entry, *evicted)
        told = Forwarded(hot.merged_into, replace(event, user_id=hot.merged_into, src=-1, prev=-1, digest=b""))
        self._tell(draft, user_id, told, event.occurred_at, event.message_id)
        draft.merges["forwarded"] += 1

    # -- what other shards tell -----------------------------------------------------------------------

    async def step(self) -> None:
        """Apply what others have told since the last call."""
        states = {s: state for s, state in self._segmenter.shards.items() if state.rules is not None}
        if not states:
            return
        polled = await self._source.fetch(states, max_records=_MOST)
        if polled.positions:
            for piece in self._suspects.pieces(polled):
                await self._segmenter.room()
                await self._apply(piece)

    async def _apply(self, polled: Polled) -> None:
        self._suspects.trying(polled)
        told = {shard: [decode_merge(r.value or b"") for r in several] for shard, several in polled.records.items()}
        self._suspects.replace(polled, told, _of_nobody)
        shards = self._segmenter.shards
        await load_whole(
            self._segmenter.pool,
            shards,
            {
                (s, row.told.user_id)
                for s, several in told.items()
                for row in several
                if row.told.user_id and not isinstance(row.told, Forwarded)
            },
        )
        await load(
            self._segmenter.pool,
            shards,
            {s: [r.told.event for r in several if isinstance(r.told, Forwarded)] for s, several in told.items()},
        )
        drafts = {shard: self._segmenter.draft(shard) for shard in told}
        for shard, several in told.items():
            draft, state = drafts[shard], shards[shard]
            for row in several:
                self._row(draft, row)
            state.told_at = behind(state.told_at, polled.records[shard][-1], polled.positions[shard])
            draft.told = [state.told_at, *(state.heard[teller] for teller in sorted({row.shard for row in several}))]
        POINTS.passing("segmenter.merge_folded")
        await self._segmenter.commit(drafts, {})
        # what it told is in the ledger now, and not relayed yet
        POINTS.passing("segmenter.merge_committed")

    def _row(self, draft: Draft, row: MergeRow) -> None:
        state = draft.state
        heard = state.heard.get(row.shard, Position(f"{self._source.topic}/{row.shard}", draft.log_id))
        if (row.gen, row.seq) <= (heard.last_gen, heard.last_src):
            REPEATS.labels("segmenter").inc()
            state.heard[row.shard] = heard
            return
        state.heard[row.shard] = dataclasses.replace(heard, last_gen=row.gen, last_src=row.seq)
        told = row.told
        # what comes from another shard comes late: the user may have been brought beyond it
        as_of = max(told.event.received_at if isinstance(told, Forwarded) else told.received_at, state.now)
        at_src = self._segmenter.reader.shards[state.shard].position.last_src
        draft.merge(row.shard, row.gen, row.seq, at_src, as_of)
        if not told.user_id:
            return
        entry = state.users[told.user_id]
        match told:
            case Asked():
                self._asked(draft, entry, told, as_of)
            case Answered():
                self._answered(draft, entry, told, as_of)
            case Declined():
                self._declined(draft, entry, told, as_of)
            case Forgotten():
                self._forgotten(draft, entry, told)
            case Forwarded():
                self._segmenter.event(draft, told.event, as_of)

    def _asked(self, draft: Draft, entry: Entry, told: Asked, as_of: int) -> None:
        """Lay the user down and answer, in this one transaction; or say why not."""
        rules, user_id = draft.state.rules, told.user_id
        assert rules is not None
        verdict = identity.judge(entry.hot, told.by, suppressed=draft.state.suppresses(user_id))
        if verdict == "answered":
            return
        if entry.hot is not None:
            self._bring(draft, user_id, entry, as_of)
        if verdict != "merge":
            reply: Told = Declined(told.by, user_id, verdict, told.message_id, told.occurred_at, told.received_at)
            self._tell(draft, user_id, reply, told.occurred_at, told.message_id)
            draft.merges[verdict] += 1
            return
        hot_row = cold_row = b""
        if entry.hot is None:
            entry.hot = merging.never_seen(told.by, told.occurred_at, rules)
            draft.dirty[user_id] = entry
        else:
            was, cold = entry.hot, entry.cold or Cold()
            hot_row, cold_row = encode_hot(was), encode_cold(cold)
            left = merging.leave(user_id, was, cold, told.by, at=told.occurred_at, cause=told.message_id, rules=rules)
            entry.hot, entry.cold = left.hot, left.cold
            draft.new_cold.add(user_id)
            draft.laid_down(user_id, entry, was, left.changes, left.daily)
        raise_bucket(entry)
        answer = Answered(told.by, user_id, hot_row, cold_row, told.message_id, told.occurred_at, told.received_at)
        self._tell(draft, user_id, answer, told.occurred_at, told.message_id)
        draft.merges["merged"] += 1

    def _answered(self, draft: Draft, entry: Entry, told: Answered, as_of: int) -> None:
        """Fold in what the other shard kept; once, whatever is told how often."""
        rules, user_id = draft.state.rules, told.user_id
        assert rules is not None
        if entry.hot is None and draft.state.suppresses(user_id):
            return
        if entry.hot is None:
            entry.hot, changes, daily = born(told.occurred_at, "merge", told.message_id, rules.current)
            draft.user(user_id, entry, None, changes, daily, -1)
        cold = entry.cold or Cold()
        if identity.outcome_of(cold, told.other) == ABSORBED:
            return
        cold = entry.cold = identity.settled(cold, told.other, ABSORBED)
        draft.dirty[user_id] = entry
        draft.new_cold.add(user_id)
        draft.merges["absorbed"] += 1
        self._bring(draft, user_id, entry, as_of)
        if not told.hot:
            return
        before = entry.hot
        merged = merging.absorb(
            user_id, before, cold, told.other, decode_hot(told.hot), decode_cold(told.cold), at=told.occurred_at,
            as_of=as_of, cause=told.message_id, rules=rules,
        )  # fmt: skip
        entry.hot, entry.cold = merged.hot, merged.cold
        draft.user(user_id, entry, before, merged.changes, merged.daily, -1)

    def _declined(self, draft: Draft, entry: Entry, told: Declined, as_of: int) -> None:
        if entry.hot is None:
            return
        self._bring(draft, told.user_id, entry, as_of)
        draft.dirty[told.user_id] = entry
        draft.new_cold.add(told.user_id)
        if told.reason == "suppressed":
            # an erased id is kept nowhere
            entry.cold = identity.withdrawn(entry.cold or Cold(), told.other)
            return
        entry.cold = identity.settled(entry.cold or Cold(), told.other, REFUSED)
        self._refused(draft, told.user_id, told.reason, told.occurred_at, told.message_id)

    def erased(self, draft: Draft, user_id: str, entry: Entry, at: int, erasure_id: str, besides: str = "") -> None:
        """The user is about to be erased: the other ids of the same person are as well, except `besides`, where it
        began."""
        if entry.hot is None:
            return
        to = [entry.hot.merged_into] if entry.hot.merged_into else identity.claimed(entry.cold or Cold())
        for other in to:
            if other != besides:
                self._tell(draft, user_id, Forgotten(other, user_id, erasure_id, at, at), at, erasure_id)

    def _forgotten(self, draft: Draft, entry: Entry, told: Forgotten) -> None:
        """Erase the user where the id that was erased is theirs as well."""
        user_id, state = told.user_id, draft.state
        if entry.hot is None or not identity.same(entry.hot, entry.cold or Cold(), told.other):
            return
        self.erased(draft, user_id, entry, told.received_at, told.erasure_id, besides=told.other)
        of_this = f"{told.erasure_id}-{suppression_hash(state.salt, user_id).hex()[:12]}"
        erase(draft, entry, Erase(-1, -1, b"", state.version, user_id, of_this, told.received_at))

    @staticmethod
    def _bring(draft: Draft, user_id: str, entry: Entry, as_of: int) -> None:
        assert entry.hot is not None and draft.state.rules is not None
        before = entry.hot
        entry.hot, changes, daily = tick(before, as_of, draft.state.rules)
        draft.user(user_id, entry, before, changes, daily, -1)

    @staticmethod
    def _refused(draft: Draft, user_id: str, reason: str, at: int, cause: str) -> None:
        draft.row(user_id, Change("merge_refused", {"reason": reason}, at, "merge", cause))

    def _tell(self, draft: Draft, user_id: str, told: Told, at: int, message_id: str) -> None:
        draft.tell(user_id, shard_of(told.user_id, self._shards), told, at, message_id)


def _of_nobody(row: MergeRow) -> MergeRow:
    """What stands in for a row that makes the code fail: it moves the numbers on, and concerns no user."""
    return replace(row, told=Declined("", "", "bug", "", 0, 0))
