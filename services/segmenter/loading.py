"""How the users a batch touches come into memory, with no more of each than the batch will look at."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from services.segmenter import store
from services.segmenter.domain.compiled import Compiled
from services.segmenter.domain.decide import needs_cold
from services.segmenter.domain.dedup import KEEP_HOURS, needs_spill
from services.segmenter.domain.state import decode_cold, decode_hot
from services.segmenter.shard import DAY_HOURS, HOUR_MS, NOTHING, Entry, ShardState
from shared.contracts.events import Accepted, Decision, Erase


async def load(
    source: store.Source, shards: Mapping[int, ShardState], decisions: Mapping[int, Sequence[Decision]]
) -> None:
    """Have every user these decisions touch in memory, with the cold part and spilled ids where needed."""
    missing = {
        (shard, decision.user_id)
        for shard, several in decisions.items()
        for decision in several
        if isinstance(decision, Accepted | Erase) and decision.user_id not in shards[shard].users
    }
    await _load_hot(source, shards, missing)
    await _load_rest(source, shards, decisions)


async def load_whole(source: store.Source, shards: Mapping[int, ShardState], keys: Collection[store.Key]) -> None:
    """Have these users in memory, with the cold part."""
    await _load_hot(source, shards, {(shard, user_id) for shard, user_id in keys if user_id not in shards[shard].users})
    entries = {key: shards[key[0]].users[key[1]] for key in keys}
    await _load_cold(source, {key: entry for key, entry in entries.items() if not entry.cold_known})


async def _load_hot(source: store.Source, shards: Mapping[int, ShardState], missing: Collection[store.Key]) -> None:
    if not missing:
        return
    found = await store.load(source, sorted(missing))
    for shard, user_id in missing:
        kept = found.get((shard, user_id))
        shards[shard].users[user_id] = (
            Entry(decode_hot(kept[1]), bucket=kept[0], known=True)
            if kept is not None
            else Entry(cold_known=True, spilled=NOTHING)
        )


async def _load_cold(source: store.Source, entries: Mapping[store.Key, Entry]) -> None:
    if not entries:
        return
    rows = await store.load_cold(source, sorted(entries))
    for key, entry in entries.items():
        entry.cold_known = True
        entry.cold = decode_cold(rows[key]) if key in rows else None


async def _load_rest(
    source: store.Source, shards: Mapping[int, ShardState], decisions: Mapping[int, Sequence[Decision]]
) -> None:
    cold: dict[store.Key, Entry] = {}
    spilled: dict[store.Key, Entry] = {}
    oldest: list[int] = []
    for shard, several in decisions.items():
        users = shards[shard].users
        for event in several:
            if isinstance(event, Erase):
                entry = users[event.user_id]
                if not entry.cold_known:  # it tells which other ids are theirs
                    cold[shard, event.user_id] = entry
            if not isinstance(event, Accepted):
                continue
            entry = users[event.user_id]
            if entry.cold_known and entry.spilled is not None:
                continue  # of most users all is there
            if not entry.cold_known and needs_cold(entry.hot, event, _known(shards[shard], event)):
                cold[shard, event.user_id] = entry
            hour = event.received_at // HOUR_MS
            if entry.spilled is None and entry.hot is not None and needs_spill(entry.hot.spilled_hour, hour):
                spilled[shard, event.user_id] = entry
                oldest.append(hour - KEEP_HOURS)
    await _load_cold(source, cold)
    if spilled:
        ids = await store.load_spilled(source, sorted(spilled), min(oldest) // DAY_HOURS)
        for key, entry in spilled.items():
            entry.spilled = ids[key] or NOTHING


def _known(state: ShardState, event: Accepted) -> Compiled | None:
    """The rules the event will be folded under; None while the shard has yet to adopt them."""
    return state.rules.current if state.rules is not None and event.rules <= state.version else None
