"""How a campaign set going for an audience becomes messages: shard by shard, page by page.

An alert's pages go by user, for a user of several of its cities is told of one; the others', whose audience may be a
whole time zone, go city by city, as the cohorts lie.

A page is read in one snapshot together with the ledger number it was true at, and planned only once the
recipients here have been folded up to that number: consent and audience are then of one moment.

Chains of alerts that turned out to be one keep the ids their messages lie under, and a user told under any of them is
not told again. A join and the run of the alert that makes it are one commit of the context handler, and no page is read
while another is in hand: so who reads that run's page knows the join, and finds all that was planned before it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from services.notifier import forecasts
from services.notifier.domain.campaign import Occurrence, city_facts
from services.notifier.domain.recipient import Recipient
from services.notifier.forecasts import Valid
from shared.data.db import Connection, Pool, transaction
from shared.gazetteer import Gazetteer
from shared.process.clock import monotonic
from shared.process.metrics import OPEN_PAGES

_PAGE = 1000
_POLL_SECONDS = 0.5
_AT_ONCE = 64
"""Most pages read and planned together."""
_MEMBERS_AT_ONCE = 4000
"""With so many users no page is added that is no alert's: one that comes meanwhile waits for their commit."""

# alerts first: whoever is to take shelter does not wait until a country was wished a good morning
_OPEN = """
SELECT r.run_id, s.shard, s.cursor, r.context <> 'alert' AS by_city
FROM notifier.run_shard s JOIN notifier.run r USING (run_id)
WHERE s.shard = ANY($1::int[]) AND NOT s.done ORDER BY by_city, r.created_at, r.run_id, s.shard LIMIT $2
"""
_RUNS = """
SELECT run_id, campaign, occurrence, city_ids, relations, facts, occurred_at, began_at, valid_until, context
FROM notifier.run WHERE run_id = ANY($1::text[])
"""
RUN_SHARDS = (
    "INSERT INTO notifier.run_shard (run_id, shard) SELECT $1, generate_series(0, $2 - 1) ON CONFLICT DO NOTHING"
)
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
# Behind (relation, city, user). The index is read in its own order, and no further than the page goes.
_MEMBERS_BY_CITY = """
SELECT m.user_id, c.city_id, c.relation, m.entered_seq
FROM (
    SELECT n, relation, city_id, CASE WHEN n = $4 AND city_id = $5 THEN $6 ELSE '' END AS after
    FROM unnest($3::text[]) WITH ORDINALITY AS r(relation, n) CROSS JOIN unnest($2::int[]) AS u(city_id)
    WHERE n > $4 OR (n = $4 AND city_id >= $5) ORDER BY n, city_id
) c
CROSS JOIN LATERAL (
    SELECT user_id, entered_seq FROM audience.cohort_member t
    WHERE t.shard = $1 AND t.city_id = c.city_id AND t.relation = c.relation AND t.user_id > c.after
    ORDER BY user_id LIMIT $7
) m
ORDER BY c.n, c.city_id, m.user_id LIMIT $7
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
    """The alert's; empty in other runs."""
    occurred_at: int
    began_at: int
    valid_until: int | None
    context: str
    """What is told of: `alert`, `forecast`, or nothing (empty)."""
    joined: tuple[tuple[str, int], ...] = ()
    """Other chains that are this one: their ids, and when each began."""
    forecasts: Mapping[int, Valid] = MappingProxyType({})
    """By city, those that hold for cities of this page."""


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

    @property
    def end(self) -> str:
        """Behind what the next page begins."""
        if not self.members:
            return ""
        last = self.members[-1]
        return last.user_id if self.run.context == "alert" else f"{last.relation}:{last.city_id}:{last.user_id}"


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

    async def next_pages(self, heard: Callable[[int], tuple[int, int]], now_ms: int) -> list[Page]:
        """Pages whose moment the recipients have reached, to be planned and noted together; [] if there are none now.

        No more are read while any wait: what was handed out must be committed before it is asked for again.
        """
        if not self._waiting and self._shards and monotonic() - self._asked_at >= _POLL_SECONDS:
            rows = await self._pool.fetch(_OPEN, list(self._shards), _AT_ONCE)
            self._asked_at = monotonic()
            OPEN_PAGES.set(len(rows))
            if rows:
                async with transaction(self._pool, "repeatable_read") as connection:
                    self._waiting = await self._read_all(connection, rows, now_ms)
            if len(rows) == _AT_ONCE or len(self._waiting) < len(rows):
                self._asked_at = 0.0
        ready = [page for page in self._waiting if heard(page.shard) >= page.true_at]
        self._waiting = [page for page in self._waiting if heard(page.shard) < page.true_at]
        return ready

    async def _read_all(self, connection: Connection, rows: list[Any], now_ms: int) -> list[Page]:
        """As many pages as are planned together."""
        found = await _runs(connection, {row["run_id"] for row in rows})
        context_offset = await connection.fetchval(_CONTEXT_READ)
        pages: list[Page] = []
        for row in rows:
            if row["by_city"] and sum(len(page.members) for page in pages) >= _MEMBERS_AT_ONCE:
                break
            run = found[row["run_id"]]
            pages.append(await self._read(connection, run, row["shard"], row["cursor"], context_offset, now_ms))
        return pages

    async def _read(
        self, connection: Connection, run: Run, shard: int, after: str, context_offset: int, now_ms: int
    ) -> Page:
        if run.context == "alert":
            found = await connection.fetch(_MEMBERS, shard, list(run.city_ids), list(run.relations), after, _PAGE)
        else:
            # a user's default city comes before their others
            relations = sorted(run.relations, key=lambda relation: relation != "default")
            relation, city, user = after.split(":", 2) if after else (relations[0], "0", "")
            number = relations.index(relation) + 1
            found = await connection.fetch(
                _MEMBERS_BY_CITY, shard, list(run.city_ids), relations, number, int(city), user, _PAGE
            )
        at = await connection.fetchrow("SELECT gen, last_seq FROM audience.position WHERE shard = $1", shard)
        true_at = (at["gen"], at["last_seq"]) if at is not None and at["last_seq"] > 0 else (0, -1)
        members = [Member(**dict(m)) for m in found]
        if run.context == "forecast":
            run = run._replace(forecasts=await forecasts.valid(connection, list({m.city_id for m in members}), now_ms))
        return Page(run, shard, after, members, true_at, context_offset)

    def advance(self, page: Page, heard: tuple[int, int], now_ms: int) -> Callable[[Connection], Awaitable[None]]:
        """The write that goes with the page's messages: its cursor, and at which numbers it was read and planned."""

        async def write(connection: Connection) -> None:
            run_id, shard = page.run.run_id, page.shard
            await connection.execute(_ADVANCE, run_id, shard, page.end, page.last, len(page.members))
            await connection.execute(
                _PAGED, run_id, shard, page.after, page.true_at[1], page.context_offset, heard[1], now_ms
            )

        if not page.last:
            self._asked_at = 0.0
        return write

    @staticmethod
    def still_concerns(run: Run, member: Member, recipient: Recipient) -> bool:
        """Whether the user is in the cohort even now; searches are not known here, and are believed. What is told of a
        city is told to whoever has that very city."""
        cities = run.city_ids if run.context == "alert" else {member.city_id}
        if member.relation == "default":
            return recipient.default_city in cities
        if member.relation == "added":
            return not cities.isdisjoint(recipient.added)
        return True

    def occurrence(self, run: Run, member: Member) -> Occurrence | None:
        """What the run is about as this user meets it: in the city that ties them to it. None where there is nothing
        to tell of that city."""
        city = city_facts(self._gazetteer.get(member.city_id))
        occurrence = Occurrence(
            id=run.occurrence,
            occurred_at=run.occurred_at,
            valid_until=run.valid_until,
            began_at=run.began_at,
            joined=run.joined,
            variables={"city": city},
        )
        match run.context:
            case "alert":
                return replace(occurrence, variables={"alert": run.facts, "city": city})
            case "forecast":
                told = run.forecasts.get(member.city_id)
                return telling(occurrence, told) if told is not None else None
            case _:
                return occurrence


def telling(occurrence: Occurrence, told: Valid) -> Occurrence:
    """The occurrence with a forecast, over no later than that."""
    ends = [at for at in (occurrence.valid_until, told.ends_at) if at is not None]
    return replace(occurrence, valid_until=min(ends), variables={**occurrence.variables, "forecast": told.facts})


async def _runs(connection: Connection, run_ids: Collection[str]) -> dict[str, Run]:
    joined = await _joined(connection, run_ids)
    return {
        row["run_id"]: Run(
            row["run_id"],
            row["campaign"],
            row["occurrence"],
            frozenset(row["city_ids"]),
            tuple(row["relations"]),
            msgspec.json.decode(row["facts"]),
            row["occurred_at"],
            row["began_at"],
            row["valid_until"],
            row["context"],
            joined.get(row["run_id"], ()),
        )
        for row in await connection.fetch(_RUNS, list(run_ids))
    }


async def _joined(connection: Connection, run_ids: Iterable[str]) -> dict[str, tuple[tuple[str, int], ...]]:
    found: dict[str, tuple[tuple[str, int], ...]] = {}
    for row in await connection.fetch(_JOINED, list(run_ids)):
        found[row["run_id"]] = (*found.get(row["run_id"], ()), (row["occurrence"], row["began_at"]))
    return found


async def told(connection: Connection | Pool, message_ids: Iterable[str]) -> set[str]:
    """Which of these messages there are."""
    return {row["message_id"] for row in await connection.fetch(_TOLD, list(message_ids))}
