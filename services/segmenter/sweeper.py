"""Who falls due by the mere passing of time, or by new rules; made visible page by page.

The sweep decides nothing that the user's next event would not decide as well: it only makes it seen in time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.segmenter import store
from services.segmenter.domain.passing import tick
from services.segmenter.domain.state import decode_hot
from services.segmenter.shard import HOUR_MS, Draft, Entry, ShardState, raise_bucket
from shared.process.metrics import DUE_LATENESS, SEGMENTER_DUE

if TYPE_CHECKING:
    from services.segmenter.pipeline import Segmenter

_PAGE = 2000
_PAGES_PER_STEP = 4


class Sweeper:
    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter

    async def step(self) -> None:
        """A few pages of either work; events come in between. Time is told as far as it was swept: so the shard
        furthest behind comes first, and a walk holds no sweep up."""
        states = sorted(self._segmenter.shards.values(), key=lambda state: state.swept)
        pages = 0
        for state in states:
            while pages < _PAGES_PER_STEP and state.rules is not None and self._sweep_wanted(state):
                await self._sweep_page(state)
                pages += 1
        pages = 0
        for state in states:
            while pages < _PAGES_PER_STEP and state.rules is not None and state.rules_cursor is not None:
                await self._walk_page(state)
                pages += 1

    def _sweep_wanted(self, state: ShardState) -> bool:
        """Not before what came under other ids of the users is applied: nobody falls due over what waits there."""
        behind = state.sweep_at is not None or state.watermark > state.swept
        return behind and self._segmenter.merger.read_up(state)

    async def _sweep_page(self, state: ShardState) -> None:
        """Bring the next page of users that may be due to the watermark the sweep began with."""
        assert state.rules is not None
        as_of, bucket_from, user_from = state.sweep_at or (state.watermark, -1, "")
        found = await store.due(self._segmenter.pool, state.shard, as_of // HOUR_MS, (bucket_from, user_from), _PAGE)
        draft = self._segmenter.draft(state.shard)
        position = self._segmenter.reader.shards[state.shard].position
        brought: list[int] = []
        for user_id, bucket, hot in found:
            entry = self._entry(state, user_id, bucket, hot)
            assert entry.hot is not None
            due_at = entry.hot.due_at
            if 0 <= due_at <= as_of:
                if state.last_tick < as_of:
                    draft.tick(position.last_src, as_of)
                self._bring(draft, user_id, entry, max(as_of, state.last_tick))
                brought.append(due_at)
            elif bucket != due_at // HOUR_MS:
                draft.dirty[user_id] = entry
            raise_bucket(entry)
        if draft.dirty:
            await self._segmenter.commit({state.shard: draft}, {})
        now = self._segmenter.clock.now_ms()
        for due_at in brought:
            DUE_LATENESS.observe(max(0, now - due_at) / 1000)
        SEGMENTER_DUE.inc(len(brought))
        if len(found) < _PAGE:
            state.swept, state.sweep_at = as_of, None
        else:
            state.sweep_at = (as_of, found[-1][1], found[-1][0])

    async def _walk_page(self, state: ShardState) -> None:
        """Bring the next page of users to the shard's rules version."""
        assert state.rules is not None and state.rules_cursor is not None
        found = await store.walk(self._segmenter.pool, state.shard, state.rules_cursor, _PAGE)
        draft = self._segmenter.draft(state.shard)
        for user_id, bucket, hot in found:
            entry = self._entry(state, user_id, bucket, hot)
            assert entry.hot is not None
            if entry.hot.rules_version < state.version:
                self._bring(draft, user_id, entry, state.last_tick)
                raise_bucket(entry)
        state.rules_cursor = found[-1][0] if len(found) == _PAGE else None
        await self._segmenter.commit({state.shard: draft}, {})

    def _bring(self, draft: Draft, user_id: str, entry: Entry, as_of: int) -> None:
        assert entry.hot is not None and draft.state.rules is not None
        before = entry.hot
        entry.hot, changes, daily = tick(before, as_of, draft.state.rules)
        draft.user(user_id, entry, before, changes, daily, -1)

    @staticmethod
    def _entry(state: ShardState, user_id: str, bucket: int | None, hot: bytes) -> Entry:
        """The cached user, or one read just now; users only passed by are not worth a place in the cache."""
        cached = state.users.get(user_id)
        if cached is not None and cached.hot is not None:
            cached.bucket = bucket
            return cached
        return Entry(decode_hot(hot), bucket=bucket, known=True)
