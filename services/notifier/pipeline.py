"""The way of a feed row to a message: fold the recipient, plan, keep the message before anything is sent."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from msgspec.structs import replace

from services.notifier import alert_chains, erasing, exposures, messages
from services.notifier.book import Active, CampaignBook
from services.notifier.dispatch import Dispatcher
from services.notifier.domain.alert_chain import cities_of, updates
from services.notifier.domain.recipient import Recipient, decode_recipient, drop_token, encode_recipient, fold
from services.notifier.holding import Holding, release
from services.notifier.messages import Message, Months, OutcomeRow
from services.notifier.planning import Candidate, Cause, Draft, Planner
from services.notifier.runs import Page, Runs
from shared.contracts.changes import USER_ERASED
from shared.contracts.events import Feed, FeedRow, FeedTime, decode_feed
from shared.contracts.rules import AlertTrigger
from shared.data.db import Connection, Pool
from shared.data.shard_owner import Owner, Position
from shared.gazetteer import Gazetteer
from shared.kafka.chain import judge
from shared.kafka.fenced_reader import FencedReader, OwnedShard
from shared.kafka.relay import Relay
from shared.kafka.shard_consumer import Polled
from shared.kafka.suspects import Suspects
from shared.process.clock import Clock
from shared.process.metrics import FEED_AGE, GAPS, MESSAGES, REPEATS, SUPPRESSED

log = logging.getLogger("perennial.notifier")

# OFFSET 0 keeps the planner from turning the look-ups by key into a join that scans every recipient
_LOAD = """
SELECT w.shard, w.user_id, r.body FROM unnest($1::int[], $2::text[]) AS w(shard, user_id)
CROSS JOIN LATERAL (
    SELECT body FROM notifier.recipient t WHERE t.shard = w.shard AND t.user_id = w.user_id OFFSET 0
) r
"""
_SAVE = """
INSERT INTO notifier.recipient (shard, user_id, body) SELECT * FROM unnest($1::int[], $2::text[], $3::bytea[])
ON CONFLICT (shard, user_id) DO UPDATE SET body = excluded.body
"""
_FORGET = """
DELETE FROM notifier.recipient r USING unnest($1::int[], $2::text[]) AS n(shard, user_id)
WHERE r.shard = n.shard AND r.user_id = n.user_id
"""


class Notifier:
    """The worker of a `FencedReader` on `user.feed.v1`; `reader` is set by the composition root."""

    reader: FencedReader

    def __init__(
        self,
        *,
        pool: Pool,
        book: CampaignBook,
        relay: Relay[OutcomeRow],
        dispatcher: Dispatcher,
        runs: Runs,
        clock: Clock,
        gazetteer: Gazetteer,
        most_cached: int,
    ) -> None:
        self._pool, self._book, self._relay, self._clock = pool, book, relay, clock
        self._dispatcher, self._runs, self._months = dispatcher, runs, Months(pool)
        self._planner, self._holding = Planner(pool, book, clock, gazetteer), Holding(pool)
        self._most_cached = most_cached
        self._recipients: dict[int, dict[str, Recipient | None]] = {}
        self._suspects = Suspects()
        self._told: dict[int, int] = {}
        self._complete: dict[int, int] = {}
        FEED_AGE.set_function(self._feed_age)

    # -- owning ---------------------------------------------------------------------------------------

    async def take(self, connection: Connection, shards: Mapping[int, OwnedShard]) -> None:
        self._recipients = {shard: {} for shard in shards}
        self._complete = {}
        self._told = {shard: at for shard, at in self._told.items() if shard in shards}

    async def taken(self) -> None:
        self._relay.own(self.reader.shards)
        for shard, owned in self.reader.shards.items():
            relayed = owned.owner.relayed
            while relayed < owned.owner.next_seq - 1:
                rows = await messages.unsent_outcomes(self._pool, shard, relayed)
                if not rows:
                    break
                self._relay.put(shard, rows)
                relayed = rows[-1].seq
        await self._dispatcher.own(self.reader.shards)
        self._runs.own(self.reader.shards)

    def drop(self) -> None:
        self._relay.disown_all()
        self._dispatcher.disown()
        self._runs.own(())
        self._suspects.release()
        self._recipients = {}

    def suspect(self, error: Exception) -> None:
        self._suspects.failed()

    # -- applying -------------------------------------------------------------------------------------

    async def handle(self, polled: Polled) -> None:
        for piece in self._suspects.pieces(polled):
            await self._relay.room()
            await self._apply(piece)

    async def idle(self) -> None:
        await self._drop_dead_tokens()
        pages = await self._runs.next_pages(self._heard, self._clock.now_ms())
        if pages:
            await self._expand(pages)
        await self._release()

    async def _expand(self, pages: list[Page]) -> None:
        """Plan the members of these pages, and note in the same transaction how far their runs have come."""
        draft = Draft(self._book.in_force)
        await self._load({(page.shard, member.user_id) for page in pages for member in page.members})
        planned = [
            one
            for page in pages
            if (active := draft.rules.by_id.get(page.run.campaign)) is not None
            for one in await self._steps(page, active)
        ]
        await self._planner.remember(draft, (candidate for candidate, _ in planned))
        for candidate, cause in planned:
            recipient = self._recipients[candidate.shard][candidate.user_id]
            assert recipient is not None
            self._planner.plan(draft, candidate, recipient, cause)
        now = self._clock.now_ms()
        writes = [self._runs.advance(page, self._heard(page.shard), now) for page in pages]

        async def advance(connection: Connection) -> None:
            for write in writes:
                await write(connection)

        await self._commit([page.shard for page in pages], {}, draft, advance)

    async def _steps(self, page: Page, active: Active) -> list[tuple[Candidate, Cause]]:
        """What is to be done for the members of a page: of an alert's run, by what each was shown of its chain."""
        run, shard, found = page.run, page.shard, []
        known = [(m, r) for m in page.members if (r := self._recipients[shard][m.user_id]) is not None]
        if run.context != "alert":
            for member, recipient in known:
                if self._runs.still_concerns(member, recipient) and (one := self._runs.occurrence(run, member)):
                    cause = Cause(0, member.tie.entered_seq, -1, run.run_id, member.tie.city_id)
                    found.append((Candidate(shard, member.user_id, active, one), cause))
            return found
        trigger, ttl = active.campaign.trigger, active.campaign.ttl_seconds
        assert isinstance(trigger, AlertTrigger)
        keys = [(shard, member.user_id) for member, _ in known]
        told = await alert_chains.stories(self._pool, active.campaign.id, ttl, run.chain, keys)
        now = self._clock.now_ms()
        for member, recipient in known:
            story = told.get((shard, member.user_id), alert_chains.UNTOLD)
            searched = [tie.city_id for tie in member.ties if tie.relation == "searched"]
            cities = cities_of(recipient, run.relations, searched)
            steps = updates(story.shown, run.chain.root, run.chain.alerts, cities, trigger, now, run.occurred_at)
            for update in steps:
                one = self._runs.moved_on(run, update)
                city = update.picture.city if update.picture is not None else 0
                cause = Cause(0, member.tie_to(city).entered_seq, -1, run.run_id)
                found.append((Candidate(shard, member.user_id, active, one, update, story.not_sent), cause))
        return found

    async def _release(self) -> None:
        """Judge what waited for the end of its user's quiet hours, or of its campaign's delay."""
        due = await self._holding.due(self.reader.shards, self._clock.now_ms(), self._complete)
        if not due:
            return
        draft = Draft(self._book.in_force)
        await self._load({(held.message.shard, held.message.user_id) for held in due})
        await self._planner.remember_held(draft, due)
        for held in due:
            self._planner.release(draft, held, self._recipients[held.message.shard][held.message.user_id])
        await self._commit(sorted({held.message.shard for held in due}), {}, draft, None)

    async def _apply(self, polled: Polled) -> None:
        feed = {shard: [decode_feed(r.value or b"") for r in records] for shard, records in polled.records.items()}
        self._suspects.trying(polled)
        self._suspects.replace(polled, feed, _of_nobody)
        await self._load(
            {(s, row.user_id) for s, rows in feed.items() for row in rows if isinstance(row, FeedRow) and row.user_id}
        )
        draft = Draft(self._book.in_force)
        await self._planner.remember_rows(draft, feed)
        positions: dict[int, Position] = {}
        complete = dict(self._complete)
        for shard, next_offset in polled.positions.items():
            records = polled.records.get(shard, [])
            position = self.reader.shards[shard].position
            gen, last = position.last_gen, position.last_src
            for row in feed.get(shard, []):
                if isinstance(row, FeedTime):
                    self._told[shard] = row.as_of
                    if last < 0 or (row.gen == gen and row.seq <= last):
                        # not over a gap: what is missing may call off what waits
                        complete[shard] = max(row.as_of, complete.get(shard, 0))
                    continue
                if row.gen > gen:
                    # a restored segmenter numbers on from beyond what it had published
                    gen, last = row.gen, row.prev_seq
                link = "repeat" if row.gen < gen else judge(last, row.prev_seq, row.seq) if last >= 0 else "apply"
                if link != "apply":
                    (REPEATS if link == "repeat" else GAPS).labels("notifier").inc()
                    if link == "gap":
                        log.error(
                            "feed rows are missing; run `perennial repair`",
                            extra={"fields": {"shard": shard, "last": last, "prev": row.prev_seq}},
                        )
                    continue
                self._row(draft, shard, row, complete.get(shard, 0))
                last = row.seq
            positions[shard] = self.reader.advanced(
                shard, records[-1] if records else None, next_offset, last_src=last, last_gen=gen
            )
        await self._commit(list(positions), positions, draft, None)
        self._complete = complete

    def _row(self, draft: Draft, shard: int, row: FeedRow, told_ms: int) -> None:
        """Fold one row, and plan what waits for it. Dead letters concern nobody here."""
        if row.kind == "dead_letter" or not row.user_id:
            return
        known = self._recipients[shard].get(row.user_id)
        now = fold(known, row)
        if now is not known:
            self._recipients[shard][row.user_id] = now
            draft.recipients[shard, row.user_id] = now
        if row.kind == USER_ERASED:
            draft.erase(erasing.Erased(shard, row.user_id, row.cause[1]))
        if row.kind == "opened":
            self._planner.tapped(draft, shard, row.user_id, row.payload["message_id"], row.occurred_at)
        if row.kind == "session_began":
            draft.sessions.append(exposures.session_of(shard, row))
        if now is not None:
            self._planner.row(draft, shard, row, now, told_ms)

    def _heard(self, shard: int) -> tuple[int, int]:
        """The last (gen, seq) of the segmenter's ledger that is applied here."""
        position = self.reader.shards[shard].position
        return position.last_gen, position.last_src

    async def _drop_dead_tokens(self) -> None:
        dead = self._dispatcher.take_dead_tokens()
        if not dead:
            return
        draft = Draft(self._book.in_force)
        await self._load({(shard, user_id) for shard, user_id, _ in dead})
        for shard, user_id, token in dead:
            known = self._recipients[shard].get(user_id)
            if known is not None and (now := drop_token(known, token)) is not known:
                self._recipients[shard][user_id] = now
                draft.recipients[shard, user_id] = now
        await self._commit(sorted({shard for shard, _, _ in dead}), {}, draft, None)

    async def recipient(self, shard: int, user_id: str) -> Recipient | None:
        """The recipient as last folded; asked before a message that waited is sent after all."""
        if shard not in self._recipients:
            return None
        await self._load({(shard, user_id)})
        return self._recipients.get(shard, {}).get(user_id)

    async def _load(self, keys: set[tuple[int, str]]) -> None:
        """Have these recipients in memory (None: not known here)."""
        missing = sorted(key for key in keys if key[1] not in self._recipients[key[0]])
        if not missing:
            return
        rows = await self._pool.fetch(_LOAD, [k[0] for k in missing], [k[1] for k in missing])
        found = {(row["shard"], row["user_id"]): row["body"] for row in rows}
        for shard, user_id in missing:
            cache = self._recipients.get(shard)
            if cache is not None and user_id not in cache:
                body = found.get((shard, user_id))
                cache[user_id] = decode_recipient(body) if body is not None else None

    # -- writing --------------------------------------------------------------------------------------

    async def _commit(
        self, shards: list[int], positions: Mapping[int, Position], draft: Draft, also: messages.Write | None
    ) -> None:
        """Write the draft in one transaction, then publish its outcomes and hand its intents over."""
        await self._months.ensure(m.month for m in draft.planned)
        outcomes: list[OutcomeRow] = []
        fresh: set[str] = set()
        stopped: set[str] = set()

        async def write(connection: Connection, owners: Mapping[int, Owner]) -> None:
            # of somebody new under an old id, what the batch writes stays
            numbers = {shard: owner.next_seq - 1 for shard, owner in owners.items()} if draft.erased else {}
            stopped.update(await erasing.erase(connection, draft.erased, numbers))
            kept = sorted((s, u, encode_recipient(r)) for (s, u), r in draft.recipients.items() if r is not None)
            if kept:
                await connection.execute(_SAVE, *map(list, zip(*kept, strict=True)))
            gone = sorted(key for key, r in draft.recipients.items() if r is None)
            if gone:
                await connection.execute(_FORGET, *map(list, zip(*gone, strict=True)))
            real = self._clock.real_ms()
            if draft.planned:
                fresh.update(await messages.insert(connection, draft.planned))
            if draft.released:
                fresh.update(await release(connection, draft.released))
            await exposures.record(connection, [m for m in (*draft.planned, *draft.released) if m.message_id in fresh])
            await exposures.count(connection, draft.sessions)
            now, by_id = self._clock.now_ms(), {m.message_id: m for m in draft.planned}
            follows = {old: by_id[new] for new, old in draft.follows.items() if new in fresh}
            ended = await messages.supersede(connection, follows, now) if follows else []
            outcomes.extend(
                messages.number(owners[message.shard], message, message.state, message.planned_at, real)
                for message in (*draft.planned, *draft.released)
                if message.state not in ("intent", "held", "waiting") and message.message_id in fresh
            )
            outcomes.extend(messages.number(owners[m.shard], m, m.state, now, real) for m in ended)
            for shard, user_id, message_id, at in draft.taps:
                found = await messages.opened(connection, message_id, user_id, at)
                if found is not None:
                    tapped = Message("", message_id, shard, user_id, found["campaign"], 0, found["variant"], "", "", 0)
                    tapped.provider, tapped.chain = found["provider"], found["chain"]
                    outcomes.append(messages.number(owners[shard], tapped, "opened", at, real))
            if outcomes:
                await messages.append_outcomes(connection, outcomes)
            if also is not None:
                await also(connection)

        await self.reader.commit(shards, positions, write)
        if stopped:
            self._dispatcher.stop(stopped)
        if draft.erased:
            self._runs.reread()
        for row in outcomes:
            MESSAGES.labels(row.outcome).inc()
            if row.outcome == "suppressed":
                SUPPRESSED.labels(row.reason).inc()
            self._relay.put(row.shard, [row])
        new = [m for m in (*draft.planned, *draft.released) if m.state == "intent" and m.message_id in fresh]
        self._dispatcher.put(new)
        self._trim(shards)

    def _feed_age(self) -> float:
        """Asked at each look; nothing before the feed has told any time."""
        if not self._told or self.reader.spare:
            return 0.0
        return max(0, self._clock.now_ms() - min(self._told.values())) / 1000

    def _trim(self, shards: list[int]) -> None:
        most = max(1000, self._most_cached // max(1, len(self._recipients)))
        for shard in shards:
            cache = self._recipients.get(shard, {})
            while len(cache) > most:
                del cache[next(iter(cache))]


def _of_nobody(row: Feed) -> Feed:
    """What stands in for a row that makes the code fail: it moves the numbers on, and concerns no recipient."""
    return replace(row, user_id="") if isinstance(row, FeedRow) else row
