"""How the drafts of a batch are written: each kind of row of all shards in one statement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from services.segmenter import erasing, store
from services.segmenter.shard import Draft
from shared.data.db import Connection
from shared.data.ledger import append
from shared.data.shard_owner import MERGES_READ, put_positions


async def save(connection: Connection, drafts: Collection[Draft]) -> None:
    """Write what these drafts changed; their numbers are already the owner rows'."""
    await erasing.save(connection, drafts)
    users = [row for draft in sorted(drafts, key=lambda draft: draft.state.shard) for row in draft.user_rows()]
    if users:
        await store.save_users(connection, users)
    rows = [row for draft in drafts for row in draft.rows]
    if rows:
        await append(connection, rows)
    spilled = [row for draft in drafts for row in draft.spilled]
    if spilled:
        await store.save_spilled(connection, spilled)
    tallies: defaultdict[tuple[int, str, str], int] = defaultdict(int)
    daily: defaultdict[tuple[str, str, int, int], int] = defaultdict(int)
    members: dict[tuple[int, int, str, str], int | None] = {}
    for draft in drafts:
        tallies.update(draft.tallies)
        daily.update(draft.daily)
        members.update(draft.members)
    await store.add_tallies(connection, tallies)
    await store.add_daily(connection, daily)
    if members:
        await store.move_members(connection, members)
    ticks = [tick for draft in drafts for tick in draft.ticks]
    if ticks:
        await store.log_ticks(connection, ticks)
    merges = [row for draft in drafts for row in draft.merge_log]
    if merges:
        await store.log_merges(connection, merges)
    await put_positions(connection, MERGES_READ, {draft.state.shard: draft.told for draft in drafts})
    times = [draft.state.times() for draft in drafts if draft.state.times() != draft.times_before]
    if times:
        await store.save_times(connection, times)
