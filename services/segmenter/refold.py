"""How a shard's users are made anew from its input: as the pipeline folds it, with time passing as it was recorded.

All of it is one transaction of the caller's. Nothing is published, and nothing is numbered for readers: what a row says
had been told when it came about.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

import asyncpg

from services.segmenter import erasing, store
from services.segmenter.domain.compiled import Compiled, InForce
from services.segmenter.domain.dedup import KEEP_HOURS
from services.segmenter.domain.passing import tick
from services.segmenter.domain.standin import NOT_KEPT, instead
from services.segmenter.domain.state import decode_hot
from services.segmenter.loading import load
from services.segmenter.pipeline import Segmenter
from services.segmenter.saving import save
from services.segmenter.shard import DAY_HOURS, HOUR_MS, Draft, Entry, Erasure, raise_bucket
from shared.contracts.events import Accepted, Decision, Rejected, TimeRecord, decode_decision
from shared.contracts.identifiers import alias_id
from shared.data.control import RulesBook
from shared.data.db import Connection, Pool
from shared.data.ledger import FEED_ONLY_KINDS, LedgerRow, append
from shared.data.shard_owner import Owner, Position
from shared.kafka.fenced_reader import OwnedShard
from shared.kafka.records import InRecord

_MOST_USERS = 200_000
_MOST_ROWS = 20_000
_PAGE = 2000

_TICKS = """
SELECT tick_id, at_src, as_of, rules_version FROM segmenter.tick_log WHERE shard = $1 AND log_id = $2 AND tick_id > $3
ORDER BY tick_id LIMIT 20000
"""


class Unreached(Exception):
    """The recorded ticks lie behind a decision that the input does not lead to: the number of that decision."""


class Merged(Exception):
    """Users of the shard turned out to be one with others, whose shards have a say in what they are: the number of the
    decision that says so."""


class Refold:
    """One shard, from nothing. `poison`: decisions that made the code fail and were set aside, by their reason.
    `history`: whether the rows of the ledger are to be written as well."""

    def __init__(
        self, connection: Connection, pool: Pool, segmenter: Segmenter, shard: int, source: str, log_id: str,
        *, poison: Mapping[int, str], history: bool, recorded_at: int,
    ) -> None:  # fmt: skip
        self._connection, self._pool, self._segmenter, self._shard = connection, pool, segmenter, shard
        self._poison, self._history, self._recorded_at = poison, history, recorded_at
        self._book = RulesBook()
        self._compiled: dict[int, Compiled] = {}
        self._ticks: deque[asyncpg.Record] = deque()
        self._tick_id = -1
        self._more_ticks = True
        self._suppressed: set[bytes] = set()
        self._erasures: list[Erasure] = []
        self._draft: Draft
        self.position = Position(source, log_id)
        self.set_aside: list[tuple[int, Exception]] = []
        """Decisions that make the code fail, by number, and how."""

    async def begin(self, owner: Owner) -> None:
        """Take everything away that the fold makes. Ticks and history stay, and whoever was erased stays out, also
        where the log tells no more of it."""
        _, before = await erasing.suppressed(self._connection, [self._shard])
        self._suppressed = before[self._shard]
        await store.forget(self._connection, self._shard)
        owned = OwnedShard(replace(owner, next_seq=1, last_change_seq=0, last_dead_seq=0), self.position)
        await self._segmenter.take(self._connection, {self._shard: owned})
        state = self._segmenter.shards[self._shard]
        self._draft = Draft(state, owned.owner, self.position, self._recorded_at)

    async def fold(self, page: Sequence[InRecord], digest: bytes) -> None:
        """Apply the records that follow, which are not none; `digest` is that of the last one in its topic."""
        decisions = [self._decision(record) for record in page]
        await load(self._connection, {self._shard: self._draft.state}, {self._shard: decisions})
        last, end = self.position.last_src, page[-1]
        for decision in decisions:
            await self._pass_ticks(last)
            last = await self._apply(decision, last)
        self.position = replace(
            self.position, next_offset=end.offset + 1, last_offset=end.offset, digest=digest, last_src=last
        )
        await self._relieve()

    async def end(self) -> int:
        """Bring every user to where the shard stands, as the sweep does; how many there are. `Unreached`."""
        await self._pass_ticks(self.position.last_src)
        if self._ticks:
            raise Unreached(self._ticks[0]["at_src"])
        await self._save()
        state, after, users = self._draft.state, "", 0
        state.users.clear()
        oldest = state.watermark // HOUR_MS - KEEP_HOURS
        await store.drop_spilled(self._connection, [self._shard], oldest // DAY_HOURS)
        while rows := await store.walk(self._connection, self._shard, after, _PAGE):
            for user_id, bucket, packed in rows:
                before = decode_hot(packed)
                assert state.rules is not None
                hot, changes, daily = tick(before, state.last_tick, state.rules)
                if hot is not before:
                    entry = Entry(hot, bucket=bucket, known=True)
                    self._draft.user(user_id, entry, before, changes, daily, -1)
                    raise_bucket(entry)
            after, users = rows[-1][0], users + len(rows)
            await self._save()
        state.rules_cursor = None
        self._draft.suppressed |= dict.fromkeys(self._suppressed - state.suppressed, True)
        for one in self._erasures if self._history else ():
            await erasing.overwrite(self._connection, [self._shard], [one.user_id], [one.seq], [alias_id()])
        # who has not heard of an erasure is told of it as of any that is under way
        self._draft.erasures = await erasing.unknown(self._connection, self._erasures)
        await save(self._connection, [self._draft])
        return users

    @property
    def next_seq(self) -> int:
        """The number behind the last row."""
        return self._draft.owner.next_seq

    def _decision(self, record: InRecord) -> Decision:
        decision: Decision = decode_decision(record.value or b"")
        if not isinstance(decision, TimeRecord) and (reason := self._poison.get(decision.src)) is not None:
            # it may have been replayed since
            for _ in range(2 if reason == NOT_KEPT and not isinstance(decision, Rejected) else 1):
                decision = instead(decision)
        return decision

    async def _apply(self, decision: Decision, last: int) -> int:
        """As the pipeline does, which sets aside what makes the code fail; not what others tell it: `Merged`."""
        if isinstance(decision, Accepted) and decision.identifies not in (None, "", decision.user_id):
            raise Merged(decision.src)
        try:
            return await self._segmenter.fold(self._draft, [decision], last)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            self.set_aside.append((decision.src, error))
            return await self._segmenter.fold(self._draft, [instead(decision)], last)

    async def _pass_ticks(self, last: int) -> None:
        """Let time come to where it stood before anything behind `last` was applied."""
        while True:
            if not self._ticks and self._more_ticks:
                rows = await self._connection.fetch(_TICKS, self._shard, self.position.log_id, self._tick_id)
                self._ticks.extend(rows)
                self._more_ticks = bool(rows)
                self._tick_id = rows[-1]["tick_id"] if rows else self._tick_id
            if not self._ticks or self._ticks[0]["at_src"] > last:
                return
            row, state = self._ticks.popleft(), self._draft.state
            state.last_tick = max(state.last_tick, row["as_of"])
            if row["rules_version"] > state.version:
                history = state.rules.history if state.rules is not None else ()
                compiled = await self._rules(row["rules_version"])
                state.rules = InForce(compiled, (*history, (row["as_of"], compiled)))

    async def _rules(self, version: int) -> Compiled:
        if version not in self._compiled:
            self._compiled[version] = Compiled(version, await self._book.get(self._pool, version))
        return self._compiled[version]

    async def _relieve(self) -> None:
        """Write down what would become too much for memory."""
        draft = self._draft
        if draft.gone:
            await self._save()  # what is kept of the user behind this is somebody new's
            draft = self._draft
        if not self._history:
            draft.rows.clear()
        elif len(draft.rows) >= _MOST_ROWS:
            await append(self._connection, self._told())
            draft.rows.clear()
        if len(draft.spilled) >= _MOST_ROWS:
            await store.save_spilled(self._connection, draft.spilled)
            draft.spilled.clear()
            for entry in draft.state.users.values():
                entry.spilled = None  # asked for again where it counts
        if len(draft.state.users) > _MOST_USERS:
            await self._save()
            draft.state.users.clear()

    def _told(self) -> list[LedgerRow]:
        """History is all that is kept of the rows: what is for the feed alone had been told, and lives for a week."""
        return [row for row in self._draft.rows if self._history and row.kind not in FEED_ONLY_KINDS]

    async def _save(self) -> None:
        draft = self._draft
        draft.rows = self._told()
        self._erasures += draft.erasures
        draft.erasures = []
        await save(self._connection, [draft])
        self._draft = Draft(draft.state, draft.owner, self.position, self._recorded_at)
