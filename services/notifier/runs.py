"""How a campaign set going for an audience becomes messages: shard by shard, page by page.

An alert's pages go by user, for a user of several of its cities is told of one; the others', whose audience may be a
whole time zone, go city by city, as the cohorts lie.

A page is read in one snapshot together with the ledger number it was true at, and planned only once the
recipients here have been folded up to that number: consent and audience are then of one moment.

An alert moves its whole chain on: a page brings its users to where the chain stood in the page's snapshot, whichever
of its alerts made the run. A join and the run of the alert that makes it are one commit of the context handler, and no
page is read while another is in hand: so who reads a page finds all that was planned of the chain before it. A run that
has not begun is done where another of its chain will bring everyone further: a burst of updates is one walk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from msgspec.structs import replace

from services.notifier import alert_chains, forecasts
from services.notifier.alert_chains import NO_CHAIN, Chain
from services.notifier.domain.alert_chain import Update
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
WHERE s.shard = ANY($1::int[]) AND NOT s.done
ORDER BY by_city, r.created_at, r.context_offset, r.run_id, s.shard LIMIT $2
"""
_RUNS = """
SELECT run_id, campaign, occurrence, context_id, city_ids, relations, occurred_at, began_at, valid_until, context
FROM notifier.run WHERE run_id = ANY($1::text[])
"""
RUN_SHARDS = (
    "INSERT INTO notifier.run_shard (run_id, shard) SELECT $1, generate_series(0, $2 - 1) ON CONFLICT DO NOTHING"
)
_CONTEXT_READ = "SELECT coalesce(max(last_offset), -1) FROM spine.shard_position WHERE service = 'context'"
# whoever has a city, and whoever was told: they may have none any more
_MEMBERS = """
SELECT user_id, array_agg(city_id ORDER BY relation <> 'default', city_id) AS city_ids,
    array_agg(relation ORDER BY relation <> 'default', city_id) AS relations,
    array_agg(entered_seq ORDER BY relation <> 'default', city_id) AS entered
FROM (
    SELECT user_id, city_id, relation, entered_seq FROM audience.cohort_member
    WHERE shard = $1 AND city_id = ANY($2::int[]) AND relation = ANY($3::text[]) AND user_id > $4
    UNION ALL
    SELECT user_id, 0, '', 0 FROM notifier.message
    WHERE shard = $1 AND chain <> '' AND chain = ANY($5::text[]) AND user_id > $4 AND month = ANY($6::text[])
        AND campaign = $7
) m
GROUP BY user_id ORDER BY user_id LIMIT $8
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
    context_id: str
    city_ids: frozenset[int]
    relations: tuple[str, ...]
    occurred_at: int
    began_at: int
    valid_until: int | None
    context: str
    """What is told of: `alert`, `forecast`, or nothing (empty)."""
    chain: Chain = NO_CHAIN
    """The alert's, as it stands in the page's snapshot."""
    forecasts: Mapping[int, Valid] = MappingProxyType({})
    """By city, those that hold for cities of this page."""


class Tie(NamedTuple):
    """What makes a user one of the audience: a city of theirs, and the ledger row that brought them there."""

    city_id: int
    relation: str
    entered_seq: int


_UNTIED = Tie(0, "", 0)


class Member(NamedTuple):
    """A user of the audience: of an alert's with all that makes them one, the city to be named first in front; else
    with the one city they are told of. Without ties: they were told of the alert, and have no city of it any more."""

    user_id: str
    ties: tuple[Tie, ...]

    @property
    def tie(self) -> Tie:
        return self.ties[0] if self.ties else _UNTIED

    def tie_to(self, city_id: int) -> Tie:
        """Theirs to the city; else their first."""
        return next((tie for tie in self.ties if tie.city_id == city_id), self.tie)


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
        user, tie = self.members[-1].user_id, self.members[-1].tie
        return user if self.run.context == "alert" else f"{tie.relation}:{tie.city_id}:{user}"


class Runs:
    def __init__(self, pool: Pool, gazetteer: Gazetteer) -> None:
        self._pool, self._gazetteer = pool, gazetteer
        self._shards: tuple[int, ...] = ()
        self._waiting: list[Page] = []
        self._asked_at = 0.0

    def own(self, shards: Iterable[int]) -> None:
        self._shards = tuple(shards)
        self.reread()

    def poke(self) -> None:
        """A run was made in this process: look at once."""
        self._asked_at = 0.0

    def reread(self) -> None:
        """Read anew what waits, with users in it who may have been erased since."""
        self._waiting = []
        self._asked_at = 0.0

    async def next_pages(self, heard: Callable[[int], tuple[int, int]], now_ms: int) -> list[Page]:
        """Pages whose moment the recipients have reached, to be planned and noted together; [] if there are none now.
        Of a chain, one in a shard: what is planned with it is what the next one is judged by.

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
        ready: dict[tuple[int, str], Page] = {}
        waiting: list[Page] = []
        for page in self._waiting:
            run = page.run
            whose = (page.shard, f"{run.campaign}:{run.chain.root}" if run.context == "alert" else run.run_id)
            if heard(page.shard) >= page.true_at and whose not in ready:
                ready[whose] = page
            else:
                waiting.append(page)
        self._waiting = waiting
        return list(ready.values())

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
            members = await _members(connection, run, shard, after)
        else:
            # a user's default city comes before their others
            relations = sorted(run.relations, key=lambda relation: relation != "default")
            relation, city, user = after.split(":", 2) if after else (relations[0], "0", "")
            number = relations.index(relation) + 1
            found = await connection.fetch(
                _MEMBERS_BY_CITY, shard, list(run.city_ids), relations, number, int(city), user, _PAGE
            )
            members = [Member(m["user_id"], (Tie(m["city_id"], m["relation"], m["entered_seq"]),)) for m in found]
        at = await connection.fetchrow("SELECT gen, last_seq FROM audience.position WHERE shard = $1", shard)
        true_at = (at["gen"], at["last_seq"]) if at is not None and at["last_seq"] > 0 else (0, -1)
        if run.context == "forecast":
            cities = list({member.tie.city_id for member in members})
            run = run._replace(forecasts=await forecasts.valid(connection, cities, now_ms))
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
    def still_concerns(member: Member, recipient: Recipient) -> bool:
        """Whether the user has the city they are told of even now; searches are not known here, and are believed."""
        city_id, relation, _ = member.tie
        if relation == "default":
            return recipient.default_city == city_id
        return relation != "added" or city_id in recipient.added

    def occurrence(self, run: Run, member: Member) -> Occurrence | None:
        """What the run is about as this user meets it: in the city they are told of. None where there is nothing to
        tell of that city."""
        occurrence = Occurrence(
            id=run.occurrence,
            occurred_at=run.occurred_at,
            valid_until=run.valid_until,
            began_at=run.began_at,
            variables={"city": city_facts(self._gazetteer.get(member.tie.city_id))},
        )
        if run.context != "forecast":
            return occurrence
        told = run.forecasts.get(member.tie.city_id)
        return telling(occurrence, told) if told is not None else None

    def moved_on(self, run: Run, update: Update) -> Occurrence:
        """What happened once to a user of an alert's run: their chain, moved on by that alert."""
        id_, began_at = f"{update.name}#{run.context_id}", run.chain.names[update.name]
        picture = update.picture
        if picture is None:
            until = update.shown.until if update.shown is not None else None
            return Occurrence(id_, run.occurred_at, valid_until=until, collapse=update.name, began_at=began_at)
        others = [place.name for city_id in picture.others if (place := self._gazetteer.get(city_id))]
        city = {**city_facts(self._gazetteer.get(picture.city)), "others": ", ".join(others) or None}
        return Occurrence(
            id_,
            picture.alert.sent_at,
            valid_until=picture.alert.valid_until,
            collapse=update.name,
            began_at=began_at,
            variables={"alert": picture.alert.facts, "city": city},
        )


def telling(occurrence: Occurrence, told: Valid) -> Occurrence:
    """The occurrence with a forecast, over no later than that."""
    ends = [at for at in (occurrence.valid_until, told.ends_at) if at is not None]
    return replace(occurrence, valid_until=min(ends), variables={**occurrence.variables, "forecast": told.facts})


async def _runs(connection: Connection, run_ids: Collection[str]) -> dict[str, Run]:
    found = await connection.fetch(_RUNS, list(run_ids))
    known = await alert_chains.load(connection, {row["run_id"] for row in found if row["context"] == "alert"})
    return {
        row["run_id"]: Run(
            row["run_id"],
            row["campaign"],
            row["occurrence"],
            row["context_id"],
            frozenset(row["city_ids"]),
            tuple(row["relations"]),
            row["occurred_at"],
            row["began_at"],
            row["valid_until"],
            row["context"],
            known.get(row["run_id"], NO_CHAIN),
        )
        for row in found
    }


async def _members(connection: Connection, run: Run, shard: int, after: str) -> list[Member]:
    """Of an alert's run: whoever has a city of the chain, and whoever was told of it. Nobody, where the run has not
    begun and another one will bring them further."""
    chain = run.chain
    if chain.overtaken and not after:
        return []
    cities, relations, names = chain.city_ids, list(run.relations), list(chain.names)
    found = await connection.fetch(_MEMBERS, shard, cities, relations, after, names, chain.months, run.campaign, _PAGE)
    return [_member(row) for row in found]


def _member(row: Any) -> Member:
    ties = map(Tie, row["city_ids"], row["relations"], row["entered"])
    return Member(row["user_id"], tuple(tie for tie in ties if tie.city_id))


async def told(connection: Connection | Pool, message_ids: Iterable[str]) -> set[str]:
    """Which of these messages there are."""
    return {row["message_id"] for row in await connection.fetch(_TOLD, list(message_ids))}
