"""How a user is erased: their rows in the commit that says so, their id in the ledger once all have heard of it.

Until the notifier has dropped what it keeps, and the broker has what was to be published, the ledger's rows are where
the id is told from again after a crash. Then it is overwritten by one that means nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable

from services.segmenter.domain.erase import leave
from services.segmenter.domain.passing import tick
from services.segmenter.shard import Draft, Entry, Erasure
from shared.contracts.events import Erase, Readmit
from shared.contracts.identifiers import alias_id, shard_of, suppression_hash
from shared.data.control import installation
from shared.data.db import Connection, Pool, transaction
from shared.data.ledger import OVERWRITTEN
from shared.process.errors import Transient
from shared.process.metrics import ERASURES, begin_each

log = logging.getLogger("perennial.segmenter.erasing")

_LOOK_SECONDS = 1.0
_AT_ONCE = 500

_SUPPRESSED = "SELECT shard, hash FROM segmenter.suppressed WHERE shard = ANY($1::int[])"
_IS_SUPPRESSED = "SELECT EXISTS (SELECT FROM segmenter.suppressed WHERE shard = $1 AND hash = $2)"
_FORGET = """
DELETE FROM segmenter.user_state u USING unnest($1::int[], $2::text[]) AS n(shard, user_id)
WHERE u.shard = n.shard AND u.user_id = n.user_id
"""
_FORGET_SPILLED = """
DELETE FROM segmenter.dedup_spill u USING unnest($1::int[], $2::text[]) AS n(shard, user_id)
WHERE u.shard = n.shard AND u.user_id = n.user_id
"""
_SUPPRESS = "INSERT INTO segmenter.suppressed SELECT * FROM unnest($1::int[], $2::bytea[]) ON CONFLICT DO NOTHING"
_READMIT = """
DELETE FROM segmenter.suppressed s USING unnest($1::int[], $2::bytea[]) AS n(shard, hash)
WHERE s.shard = n.shard AND s.hash = n.hash
"""
# of a database restored to an older state, it may be there as done
_NOTE = """
INSERT INTO control.erasure AS e (erasure_id, kind, shard, user_id, gen, seq, segmenter_at, done_at)
SELECT n.erasure_id, n.kind, n.shard, n.user_id, n.gen, n.seq, now(), CASE n.kind WHEN 'readmit' THEN now() END
FROM unnest($1::text[], $2::text[], $3::int[], $4::text[], $5::int[], $6::bigint[])
    AS n(erasure_id, kind, shard, user_id, gen, seq)
ON CONFLICT (erasure_id) DO UPDATE SET kind = excluded.kind, shard = excluded.shard, user_id = excluded.user_id,
    gen = excluded.gen, seq = excluded.seq, segmenter_at = excluded.segmenter_at, notifier_at = NULL,
    notifier_seq = NULL, done_at = excluded.done_at
"""
_TOLD = """
SELECT e.shard, e.user_id, e.seq, e.erasure_id FROM control.erasure e
JOIN spine.shard_owner s ON s.service = 'segmenter' AND s.shard = e.shard AND s.relayed >= e.seq
JOIN spine.shard_owner n ON n.service = 'notifier' AND n.shard = e.shard AND n.relayed >= e.notifier_seq
WHERE e.done_at IS NULL AND e.notifier_at IS NOT NULL AND e.shard = ANY($1::int[])
ORDER BY e.shard, e.seq LIMIT $2 FOR UPDATE OF e SKIP LOCKED
"""
_CARRIED_OUT = """
SELECT erasure_id FROM control.erasure WHERE erasure_id = ANY($1::text[]) AND segmenter_at IS NOT NULL
"""
# what an app called its event may name its user
_OVERWRITE = """
UPDATE segmenter.ledger l SET user_id = n.alias, src = $5,
    cause_id = CASE WHEN cause_type IN ('event', 'merge') THEN '' ELSE cause_id END,
    payload = CASE WHEN kind = 'dead_letter' THEN (payload::jsonb || '{"message_id": ""}')::json
                   WHEN kind = 'user_merged' THEN '{}' ELSE payload END
FROM unnest($1::int[], $2::text[], $3::bigint[], $4::text[]) AS n(shard, user_id, seq, alias)
WHERE l.shard = n.shard AND l.user_id = n.user_id AND l.seq <= n.seq
"""
_OVERWRITE_OUTBOX = """
UPDATE segmenter.outbox o SET user_id = '', src = $4, cause_id = '', payload = '{}'
FROM unnest($1::int[], $2::text[], $3::bigint[]) AS n(shard, user_id, seq)
WHERE o.shard = n.shard AND o.user_id = n.user_id AND o.seq <= n.seq
"""
_OVERWRITE_REPLAYS = """
UPDATE control.replay r SET filters = jsonb_set(filters::jsonb, '{user}', to_jsonb(n.alias))::json
FROM unnest($1::text[], $2::text[]) AS n(user_id, alias) WHERE filters->>'user' = n.user_id
"""
_DONE = "UPDATE control.erasure SET user_id = '', done_at = now() WHERE erasure_id = ANY($1::text[])"


async def overwrite(
    connection: Connection, shards: list[int], users: list[str], seqs: list[int], aliases: list[str]
) -> None:
    """Have a user's rows up to each number name nobody; no user may be there twice."""
    await connection.execute(_OVERWRITE, shards, users, seqs, aliases, OVERWRITTEN)
    await connection.execute(_OVERWRITE_OUTBOX, shards, users, seqs, OVERWRITTEN)
    await connection.execute(_OVERWRITE_REPLAYS, users, aliases)


async def unknown(connection: Connection, erasures: Collection[Erasure]) -> list[Erasure]:
    """Those of them that the segmenter is not known to have carried out."""
    known = {row["erasure_id"] for row in await connection.fetch(_CARRIED_OUT, [one.erasure_id for one in erasures])}
    return [one for one in erasures if one.erasure_id not in known]


async def suppressed(connection: Connection, shards: Iterable[int]) -> tuple[str, dict[int, set[bytes]]]:
    """The installation's salt, and by shard the hashes of users of whom nothing is taken in."""
    found: dict[int, set[bytes]] = {shard: set() for shard in shards}
    for row in await connection.fetch(_SUPPRESSED, list(found)):
        found[row["shard"]].add(row["hash"])
    return (await installation(connection)).salt, found


async def is_suppressed(connection: Connection, shards: int, user_id: str) -> bool:
    """Whether nothing is taken in of this user, as it is committed."""
    number = suppression_hash((await installation(connection)).salt, user_id)
    return bool(await connection.fetchval(_IS_SUPPRESSED, shard_of(user_id, shards), number))


def erase(draft: Draft, entry: Entry, asked: Erase) -> None:
    """Take the user out of the draft and the cache, count them out, and let nothing more of them in."""
    state, user_id = draft.state, asked.user_id
    assert state.rules is not None
    if entry.hot is not None:
        before, as_of = entry.hot, max(asked.received_at, state.last_tick)
        entry.hot, changes, daily = tick(before, as_of, state.rules)
        draft.user(user_id, entry, before, changes, daily, -1)
    changes, daily = leave(entry.hot, asked.received_at, asked.erasure_id)
    draft.leaves(user_id, entry, changes, daily, asked.src)
    if state.rules_cursor == user_id:
        state.rules_cursor = ""
    _suppress(draft, user_id, True)
    seq = draft.owner.next_seq - 1
    draft.erasures.append(Erasure(asked.erasure_id, "erase", state.shard, user_id, draft.owner.gen, seq))


def readmit(draft: Draft, asked: Readmit) -> None:
    """Let the user in again, should they come."""
    _suppress(draft, asked.user_id, False)
    draft.erasures.append(Erasure(asked.erasure_id, "readmit", draft.state.shard, "", draft.owner.gen, 0))


def _suppress(draft: Draft, user_id: str, erased: bool) -> None:
    state = draft.state
    number = suppression_hash(state.salt, user_id)
    (state.suppressed.add if erased else state.suppressed.discard)(number)
    draft.suppressed[number] = erased


async def save(connection: Connection, drafts: Collection[Draft]) -> None:
    """Write what these drafts erased; must come before the users they keep, of whom one may be new under an old id."""
    gone = sorted((draft.state.shard, user_id) for draft in drafts for user_id in draft.gone)
    if gone:
        shards, users = map(list, zip(*gone, strict=True))
        await connection.execute(_FORGET, shards, users)
        await connection.execute(_FORGET_SPILLED, shards, users)
    for statement, wanted in ((_SUPPRESS, True), (_READMIT, False)):
        rows = sorted((d.state.shard, h) for d in drafts for h, erased in d.suppressed.items() if erased is wanted)
        if rows:
            await connection.execute(statement, *map(list, zip(*rows, strict=True)))
    # the same one twice in a batch would be two writes of one row
    noted = {one.erasure_id: one for draft in drafts for one in draft.erasures}
    if noted:
        await connection.execute(_NOTE, *map(list, zip(*sorted(noted.values()), strict=True)))


class Overwriter:
    """Overwrites the ids of erased users, once everyone has been told; any process may, and again."""

    def __init__(self, pool: Pool, shards: Callable[[], Collection[int]]) -> None:
        self._pool, self._shards = pool, shards
        begin_each(ERASURES, ("erased", "overwritten", "readmitted"))

    async def run(self) -> None:
        while True:
            try:
                busy = await self.step()
            except Transient as error:
                log.warning("%s", error)
                busy = False
            if not busy:
                await asyncio.sleep(_LOOK_SECONDS)

    async def step(self) -> bool:
        """A few erasures of these shards; whether there were any. `Transient`: ask again."""
        shards = list(self._shards())
        if not shards:
            return False
        async with transaction(self._pool) as connection:
            found = await connection.fetch(_TOLD, shards, _AT_ONCE)
            # of one erased again and again the first comes first, and leaves the others what happened since
            first = {(row["shard"], row["user_id"]): row for row in reversed(found)}.values()
            if first:
                shards, users, seqs, ids = map(list, zip(*first, strict=True))
                aliases = [alias_id() for _ in users]
                await overwrite(connection, shards, users, seqs, aliases)
                await connection.execute(_DONE, ids)
        ERASURES.labels("overwritten").inc(len(first))
        return bool(found)
