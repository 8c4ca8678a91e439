"""How a campaign set going for an audience becomes messages: shard by shard, page by page.

A page is read in one snapshot together with the ledger number it was true at, and planned only once the
recipients here have been folded up to that number: consent and audience are then of one moment.

Chains of alerts that turned out to be one keep the ids their messages lie under, and a user told under any of them is
not told again. A join and the run of the alert that makes it are one commit of the context handler, and no page is read
while another is in hand: so who reads that run's page knows the join, and finds all that was planned before it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from services.notifier.domain.campaign import Occurrence, city_facts
from services.notifier.domain.recipient import Recipient
from shared.data.db import Connection, Pool, transaction
from shared.gazetteer import Gazetteer
from shared.process.clock import monotonic

_PAGE = 1000
_POLL_SECONDS = 0.5
_AT_ONCE = 64
"""Most pages read and planned together."""

_OPEN = """
SELECT r.run_id, r.campaign, r.occurrence, r.city_ids, r.relations, r.facts, r.occurred_at, r.began_at, r.valid_until,
    s.shard, s.cursor
FROM notifier.run_shard s JOIN notifier.run r USING (run_id)
WHERE s.shard = ANY($1::int[]) AND NOT s.done ORDER BY r.created_at, r.run_id, s.shard LIMIT $2
"""
_JOINED = """
SELECT DISTINCT r.run_id, o.occurrence, o.began_at FROM notifier.run r
JOIN notifier.alert_chain mine ON mine.alert_id = r.occurrence
JOIN notifier.alert_chain alike ON alike.chain_id = mine.chain_id AND alike.alert_id <> r.occurrence
JOIN notifier.run o ON o.campaign = r.campaign AND o.occurrence = alike.alert_id
WHERE r.run_id = ANY($1::text[])
"""
_CONTEXT_READ = "SELECT coalesce(max(last_offset), -1) FROM spine.shard_position WHERE service = 'context'"
_MEMBERS = """
SELECT DISTINCT ON (user_id) user_id, city_id, relation, entered_seq FROM audience.cohort_member
WHERE shard = $1 AND city_id = ANY($2::int[]) AND relation = ANY($3::text[]) AND user_id > $4
ORDER BY user_id, relation <> 'default', city_id LIMIT $5
"""
_ADVANCE = (
    "UPDATE notifier.run_shard SET cursor = $3, done = $4, planned = planned + $5 WHERE run_id = $1 AND shard = $2"
)
_PAGED = """
INSERT INTO notifier.run_page (run_id, shard, after, seq, context_offset, heard_seq, planned_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""
# one look-up by key per id: a join would walk every month's messages
_TOLD = """
SELECT t.message_id FROM unnest($1::text[]) AS n(message_id) CROSS JOIN LATERAL (
    SELECT m.message_id FROM notifier.message m
    WHERE m.month = split_part(n.message_id, '-', 1) AND m.message_id = n.message_id OFFSET 0
) t
"""


class Run(NamedTuple):
    run_id: str
    campaign: str
    occurrence: str
    city_ids: frozenset[int]
    relations: tuple[str, ...]
    facts: dict[str, Any]
    occurred_at: int
    began_at: int
    valid_until: int
    joined: tuple[tuple[str, int], ...]
    """Other chains that are this one: their ids, and when each began."""


class Member(NamedTuple):
    """A user of the audience, the city that makes them one, and the ledger row that put them there."""

    user_id: str
    city_id: int
    relation: str
    entered_seq: int


@dataclass(frozen=True, slots=True)
class Page:
    run: Run
    shard: int
    after: str
    members: list[Member]
    true_at: tuple[int, int]
    context_offset: int
    """The last context event that had been judged."""

    @property
    def last(self) -> bool:
        return len(self.members) < _PAGE


class Runs:
    def __init__(self, pool: Pool, gazetteer: Gazetteer) -> None:
        self._pool, self._gazetteer = pool, gazetteer
        self._shards: tuple[int, ...] = ()
        self._waiting: list[Page] = []
        self._asked_at = 0.0

    def own(self, shards: Iterable[int]) -> None:
        self._shards = tuple(shards)
        self._waiting = []
        self._asked_at = 0.0

    def poke(self) -> None:
        """A run was made in this process: look at once."""
        self._asked_at = 0.0

    async def next_pages(self, heard: Callable[[int], tuple[int, int]]) -> list[Page]:
        """Pages whose moment the recipients have reached, to be planned and noted together; [] if there are none now.

        No more are read while any wait: what was handed out must be committed before it is asked for again.
        """
        if not self._waiting and self._shards and monotonic() - self._asked_at >= _POLL_SECONDS:
            rows = await self._pool.fetch(_OPEN, list(self._shards), _AT_ONCE)
            self._asked_at = monotonic() if len(rows) < _AT_ONCE else 0.0
            if rows:
                async with transaction(self._pool, "repeatable_read") as connection:
                    joined = await _joined(connection, {row["run_id"] for row in rows})
                    context_offset = await connection.fetchval(_CONTEXT_READ)
                    self._waiting = [
                        await self._read(connection, row, joined.get(row["run_id"], ()), context_offset) for row in rows
                    ]
        ready = [page for page in self._waiting if heard(page.shard) >= page.true_at]
        self._waiting = [page for page in self._waiting if heard(page.shard) < page.true_at]
        return ready

    async def _read(
        self, connection: Connection, row: Any, joined: tuple[tuple[str, int], ...], context_offset: int
    ) -> Page:
        run = Run(
            row["run_id"],
            row["campaign"],
            row["occurrence"],
            frozenset(row["city_ids"]),
            tuple(row["relations"]),
            msgspec.json.decode(row["facts"]),
            row["occurred_at"],
            row["began_at"],
            row["valid_until"],
            joined,
        )
        shard: int = row["shard"]
        found = await connection.fetch(_MEMBERS, shard, list(run.city_ids), list(run.relations), row["cursor"], _PAGE)
        at = await connection.fetchrow("SELECT gen, last_seq FROM audience.position WHERE shard = $1", shard)
        true_at = (at["gen"], at["last_seq"]) if at is not None and at["last_seq"] > 0 else (0, -1)
        members = [Member(**dict(m)) for m in found]
        return Page(run, shard, row["cursor"], members, true_at, context_offset)

    def advance(self, page: Page, heard: tuple[int, int], now_ms: int) -> Callable[[Connection], Awaitable[None]]:
        """The write that goes with the page's messages: its cursor, and at which numbers it was read and planned."""

        async def write(connection: Connection) -> None:
            cursor = page.members[-1].user_id if page.members else ""
            run_id, shard = page.run.run_id, page.shard
            await connection.execute(_ADVANCE, run_id, shard, cursor, page.last, len(page.members))
            await connection.execute(
                _PAGED, run_id, shard, page.after, page.true_at[1], page.context_offset, heard[1], now_ms
            )

        if not page.last:
            self._asked_at = 0.0
        return write

    @staticmethod
    def still_concerns(run: Run, member: Member, recipient: Recipient) -> bool:
        """Whether the user is in the cohort even now; searches are not known here, and are believed."""
        if member.relation == "default":
            return recipient.default_city in run.city_ids
        if member.relation == "added":
            return not run.city_ids.isdisjoint(recipient.added)
        return True

    def occurrence(self, run: Run, member: Member) -> Occurrence:
        """The alert as this user meets it: in the city that ties them to it."""
        city = city_facts(self._gazetteer.get(member.city_id))
        return Occurrence(
            id=run.occurrence,
            occurred_at=run.occurred_at,
            valid_until=run.valid_until,
            began_at=run.began_at,
            joined=run.joined,
            variables={"alert": run.facts, "city": city},
        )


async def _joined(connection: Connection, run_ids: Iterable[str]) -> dict[str, tuple[tuple[str, int], ...]]:
    found: dict[str, tuple[tuple[str, int], ...]] = {}
    for row in await connection.fetch(_JOINED, list(run_ids)):
        found[row["run_id"]] = (*found.get(row["run_id"], ()), (row["occurrence"], row["began_at"]))
    return found


async def told(connection: Connection | Pool, message_ids: Iterable[str]) -> set[str]:
    """Which of these messages there are."""
    return {row["message_id"] for row in await connection.fetch(_TOLD, list(message_ids))}
