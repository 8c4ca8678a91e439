"""How users the segmenter has erased are erased here: in the commit of the batch that says so.

What was counted stays countable: messages, exposures and outcomes keep campaign, variant, state and times, under ids
that mean nothing. What had not gone out never does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from shared.contracts.identifiers import alias_id
from shared.data.db import Connection

_OPEN = """
SELECT m.message_id FROM unnest($1::int[], $2::text[]) AS n(shard, user_id)
JOIN notifier.message m USING (shard, user_id) WHERE m.state IN ('intent', 'attempted')
"""
# the id of a message is a hash of whom it was for
_MESSAGES = """
UPDATE notifier.message m SET user_id = n.alias, message_id = m.month || '-' || left(md5(gen_random_uuid()::text), 24),
    state = CASE WHEN m.state IN ('intent', 'held', 'waiting') THEN 'suppressed'
        WHEN m.state = 'attempted' THEN 'unknown' ELSE m.state END,
    reason = CASE WHEN m.state IN ('intent', 'held', 'waiting', 'attempted') THEN 'erased' ELSE m.reason END,
    occurrence = '', provider_ref = '', device_id = '', token = '', title = '', body = '', collapse_id = '', held = '',
    explain = '', content_key = '', zone = '', run_id = '', city_id = 0, cause_gen = 0, cause_seq = 0, cause_src = -1,
    counts = false, chain = '', told = ''
FROM unnest($1::int[], $2::text[], $3::text[]) AS n(shard, user_id, alias)
WHERE m.shard = n.shard AND m.user_id = n.user_id
"""
_OUTCOMES = """
UPDATE notifier.outcome o SET user_id = n.alias, chain = '',
    message_id = split_part(o.message_id, '-', 1) || '-' || left(md5(gen_random_uuid()::text), 24)
FROM unnest($1::int[], $2::text[], $3::text[]) AS n(shard, user_id, alias)
WHERE o.shard = n.shard AND o.user_id = n.user_id
"""
_EXPOSURES = """
UPDATE notifier.exposure e SET user_id = n.alias
FROM unnest($1::int[], $2::text[], $3::text[]) AS n(shard, user_id, alias)
WHERE e.shard = n.shard AND e.user_id = n.user_id
"""
_RECIPIENTS = """
DELETE FROM notifier.recipient r USING unnest($1::int[], $2::text[]) AS n(shard, user_id)
WHERE r.shard = n.shard AND r.user_id = n.user_id
"""
_BEFORE = """
SELECT shard, user_id, coalesce((
    SELECT max(r.user_id) FROM notifier.recipient r WHERE r.shard = n.shard AND r.user_id < n.user_id
), '') AS before FROM unnest($1::int[], $2::text[]) AS n(shard, user_id)
"""
# of an alert's run a page ends at a user, of any other at relation:city:user
_CURSORS = """
SELECT run_id, shard, cursor AS place FROM notifier.run_shard WHERE shard = ANY($1::int[])
    AND (cursor = ANY($2::text[]) OR substring(cursor FROM '^[^:]*:[^:]*:(.*)$') = ANY($2::text[]))
"""
_PAGES = """
SELECT run_id, shard, after AS place FROM notifier.run_page WHERE shard = ANY($1::int[])
    AND (after = ANY($2::text[]) OR substring(after FROM '^[^:]*:[^:]*:(.*)$') = ANY($2::text[]))
"""
_MOVE_CURSOR = "UPDATE notifier.run_shard SET cursor = $4 WHERE run_id = $1 AND shard = $2 AND cursor = $3"
_MOVE_PAGE = """
UPDATE notifier.run_page SET after = $4 WHERE run_id = $1 AND shard = $2 AND after = $3
    AND NOT EXISTS (SELECT FROM notifier.run_page o WHERE o.run_id = $1 AND o.shard = $2 AND o.after = $4)
"""
_DROP_EMPTY_PAGE = "DELETE FROM notifier.run_page WHERE run_id = $1 AND shard = $2 AND after = $3"
_NOTE = """
UPDATE control.erasure e SET notifier_at = now(), notifier_seq = n.seq
FROM unnest($1::text[], $2::bigint[]) AS n(erasure_id, seq) WHERE e.erasure_id = n.erasure_id
"""


class Erased(NamedTuple):
    """A user the feed calls erased, and the request that made them so."""

    shard: int
    user_id: str
    erasure_id: str


async def erase(connection: Connection, erased: Collection[Erased], numbers: Mapping[int, int]) -> set[str]:
    """Erase these users, in the transaction that locked their shards' owner rows; the ids of messages that were on the
    way to them. `numbers`: by shard, the last one its outcomes have.

    Rows with a number are overwritten, not deleted, and those that were not published yet name nobody when they are.
    """
    if not erased:
        return set()
    shards, users = map(list, zip(*sorted({(one.shard, one.user_id) for one in erased}), strict=True))
    stopped = {row["message_id"] for row in await connection.fetch(_OPEN, shards, users)}
    aliases = [alias_id() for _ in users]
    for statement in (_MESSAGES, _OUTCOMES, _EXPOSURES):
        await connection.execute(statement, shards, users, aliases)
    await connection.execute(_RECIPIENTS, shards, users)
    await _move_pages(connection, shards, users)
    last = [numbers[one.shard] for one in erased]
    await connection.execute(_NOTE, [one.erasure_id for one in erased], last)
    return stopped


async def _move_pages(connection: Connection, shards: list[int], users: list[str]) -> None:
    """Let pages of runs that end at one of these users end at the user before, who is one that stays."""
    before = {(r["shard"], r["user_id"]): r["before"] for r in await connection.fetch(_BEFORE, shards, users)}

    async def moves(query: str) -> list[tuple[str, int, str, str]]:
        found = []
        for row in await connection.fetch(query, sorted(set(shards)), users):
            place, shard = row["place"], row["shard"]
            user = place if (shard, place) in before else place.split(":", 2)[-1]
            if (shard, user) in before:  # another shard's page may end at the same text
                found.append((row["run_id"], shard, place, place.removesuffix(user) + before[shard, user]))
        return found

    await connection.executemany(_MOVE_CURSOR, await moves(_CURSORS))
    pages = await moves(_PAGES)
    await connection.executemany(_MOVE_PAGE, pages)
    await connection.executemany(_DROP_EMPTY_PAGE, [page[:3] for page in pages if page[2] != page[3]])
