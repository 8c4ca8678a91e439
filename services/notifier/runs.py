"""How a campaign set going for an audience becomes messages: shard by shard, page by page.

A page is read in one snapshot together with the ledger number it was true at, and planned only once the
recipients here have been folded up to that number: consent and audience are then of one moment.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from services.notifier.domain.campaign import Occurrence
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
_MEMBERS = """
SELECT DISTINCT ON (user_id) user_id, city_id, relation, entered_seq FROM audience.cohort_member
WHERE shard = $1 AND city_id = ANY($2::int[]) AND relation = ANY($3::text[]) AND user_id > $4
ORDER BY user_id, relation <> 'default', city_id LIMIT $5
"""
_ADVANCE = (
    "UPDATE notifier.run_shard SET cursor = $3, done = $4, planned = planned + $5 WHERE run_id = $1 AND shard = $2"
)


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
    members: list[Member]
    true_at: tuple[int, int]

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
                    self._waiting = [await self._read(connection, row) for row in rows]
        ready = [page for page in self._waiting if heard(page.shard) >= page.true_at]
        self._waiting = [page for page in self._waiting if heard(page.shard) < page.true_at]
        return ready

    async def _read(self, connection: Connection, row: Any) -> Page:
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
        )
        shard: int = row["shard"]
        found = await connection.fetch(_MEMBERS, shard, list(run.city_ids), list(run.relations), row["cursor"], _PAGE)
        at = await connection.fetchrow("SELECT gen, last_seq FROM audience.position WHERE shard = $1", shard)
        true_at = (at["gen"], at["last_seq"]) if at is not None and at["last_seq"] > 0 else (0, -1)
        return Page(run, shard, [Member(**dict(m)) for m in found], true_at)

    def advance(self, page: Page) -> Callable[[Connection], Awaitable[None]]:
        """The write that goes with the page's messages: its cursor."""

        async def write(connection: Connection) -> None:
            cursor = page.members[-1].user_id if page.members else ""
            await connection.execute(_ADVANCE, page.run.run_id, page.shard, cursor, page.last, len(page.members))

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
        place = self._gazetteer.get(member.city_id)
        city = {
            "name": place.name if place else "",
            "state": place.state if place else None,
            "country": place.country if place else None,
            "timezone": place.timezone if place else None,
        }
        return Occurrence(
            id=run.occurrence,
            occurred_at=run.occurred_at,
            valid_until=run.valid_until,
            began_at=run.began_at,
            variables={"alert": run.facts, "city": city},
        )
