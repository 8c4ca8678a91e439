"""One shard in its owner's memory, and what a batch wants written of it."""

from __future__ import annotations

import copy
from base64 import b64encode
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from services.segmenter.domain.compiled import InForce
from services.segmenter.domain.state import ROLES, Change, Cold, Daily, Hot, encode_cold, encode_hot
from shared.contracts.events import Rejected
from shared.contracts.identifiers import suppression_hash
from shared.contracts.merges import Told, encode_told
from shared.data.ledger import CHANGE_KINDS, DEAD_LETTER, MERGE_SENT, LedgerRow
from shared.data.shard_owner import Owner, Position

HOUR_MS = 3_600_000
DAY_HOURS = 24


NOTHING: frozenset[int] = frozenset()
MergeLogged = tuple[int, int, int, int, int, str, int, int, int, int]
"""A row of segmenter.merge_log, without its id."""


@dataclass(slots=True)
class Entry:
    """A user in the cache. `bucket` is the due bucket in the table; `known` whether the table has a row. `spilled` is
    None while it was not read; most users have none, and share one empty set: 200 bytes each otherwise."""

    hot: Hot | None = None
    cold: Cold | None = None
    cold_known: bool = False
    spilled: set[int] | frozenset[int] | None = None
    bucket: int | None = None
    known: bool = False


@dataclass(slots=True)
class ShardState:
    """`watermark`, `last_tick`: see segmenter.shard_time. `swept`: the watermark the last sweep finished at;
    `sweep_at`: (watermark, due bucket, user id) of a sweep under way; `newest`: when the last event folded was
    received. `told_at`: the position in what other shards tell; `heard`: the numbers heard of each.
    `suppressed`: hashes of erased users."""

    shard: int
    watermark: int = 0
    last_tick: int = 0
    rules: InForce | None = None
    rules_cursor: str | None = None
    users: dict[str, Entry] = field(default_factory=dict)
    swept: int = 0
    sweep_at: tuple[int, int, str] | None = None
    newest: int = 0
    told_time: int = 0
    salt: str = ""
    suppressed: set[bytes] = field(default_factory=set)
    told_at: Position = field(default_factory=lambda: Position("", ""))
    heard: dict[int, Position] = field(default_factory=dict)

    def times(self) -> tuple[int, int, int, int, str | None]:
        """The shard's row of segmenter.shard_time."""
        return self.shard, self.watermark, self.last_tick, self.version, self.rules_cursor

    @property
    def now(self) -> int:
        """The moment beyond which none of the shard's users was brought. Not the watermark: what is told late, though
        received by then, is to come before the sweep that brings them there."""
        return max(self.last_tick, self.newest, self.swept, self.sweep_at[0] if self.sweep_at is not None else 0)

    @property
    def version(self) -> int:
        return self.rules.current.version if self.rules is not None else 0

    def suppresses(self, user_id: str) -> bool:
        """Whether nothing of this user is taken in. Whoever is known is not: it need not be asked of them."""
        return bool(self.suppressed) and suppression_hash(self.salt, user_id) in self.suppressed


class Erasure(NamedTuple):
    """A request that a draft carried out; `seq`: the ledger number of `user_erased` (0: there is none)."""

    erasure_id: str
    kind: str
    shard: int
    user_id: str
    gen: int
    seq: int


class Draft:
    """What a batch changes in one shard. Nothing is true before it is committed."""

    def __init__(self, state: ShardState, owner: Owner, position: Position, recorded_at: int) -> None:
        self.state = state
        self.times_before = state.times()
        self.owner = copy.copy(owner)
        self.log_id = position.log_id
        self.recorded_at = recorded_at
        self.rows: list[LedgerRow] = []
        self.dirty: dict[str, Entry] = {}
        self.new_cold: set[str] = set()
        self.tallies: defaultdict[tuple[int, str, str], int] = defaultdict(int)
        self.daily: defaultdict[tuple[str, str, int, int], int] = defaultdict(int)
        self.members: dict[tuple[int, int, str, str], int | None] = {}
        self.spilled: list[tuple[int, str, int, int]] = []
        self.ticks: list[tuple[int, int, int, str, int, int]] = []
        self.folded = {"applied": 0, "duplicate": 0, "forwarded": 0, "suppressed": 0}
        self.gone: set[str] = set()
        self.suppressed: dict[bytes, bool] = {}
        self.erasures: list[Erasure] = []
        self.merges: Counter[str] = Counter()
        self.told: list[Position] = []
        self.merge_log: list[MergeLogged] = []

    def spill(self, user_id: str, entry: Entry, message_hash: int, hour: int) -> None:
        """Keep a message id that left the user's ring too young, in memory and in the table."""
        if isinstance(entry.spilled, set):
            entry.spilled.add(message_hash)
        else:
            entry.spilled = {message_hash}
        self.spilled.append((self.state.shard, user_id, hour // DAY_HOURS, message_hash))

    def tick(self, at_src: int, as_of: int) -> None:
        """Record that time reached `as_of` (or the rules changed) behind event `at_src`."""
        state = self.state
        state.last_tick = as_of
        self.ticks.append((state.shard, self.owner.next_seq, at_src, self.log_id, as_of, state.version))

    def dead_letter(self, refused: Rejected) -> None:
        payload: dict[str, object] = {
            "reason": refused.reason,
            "message_id": refused.message_id,
            "source": refused.source,
            **({"replay": True} if refused.replay else {}),
        }
        change = Change(DEAD_LETTER, payload, refused.received_at, "event", refused.message_id)
        self._number(refused.user_id, change, refused.src)

    def merge(self, teller: int, gen: int, seq: int, at_src: int, as_of: int) -> None:
        """Record that what shard `teller` told under this number was applied behind event `at_src`, at `as_of`."""
        state = self.state
        self.merge_log.append(
            (
                state.shard, teller, gen, seq, at_src, self.log_id, as_of, state.last_tick, state.version,
                self.recorded_at,
            )
        )  # fmt: skip

    def tell(self, user_id: str, shard: int, told: Told, at: int, cause: str) -> None:
        """Tell another shard (or this one) something that follows from `user_id`."""
        payload: dict[str, object] = {"shard": shard, "told": b64encode(encode_told(told)).decode()}
        self._number(user_id, Change(MERGE_SENT, payload, at, "merge", cause), -1)

    def row(self, user_id: str, change: Change) -> None:
        """A row that changes nothing of the user."""
        self._number(user_id, change, -1)

    def _count_out(self, last: Hot) -> None:
        """One less of those who are here; `last` is what they were."""
        shard, tallies = self.state.shard, self.tallies
        tallies[shard, "users", "all"] -= 1
        tallies[shard, "stage", last.stage] -= 1
        tallies[shard, "activity", last.activity] -= 1
        for bit, name in ROLES:
            tallies[shard, "rate", name] -= bool(last.flags & bit)

    def laid_down(self, user_id: str, entry: Entry, last: Hot, changes: list[Change], daily: list[Daily]) -> None:
        """The user is part of another one: out of every count, with what they bought; `last` is what they were."""
        self.dirty[user_id] = entry
        self.new_cold.add(user_id)
        self._count_out(last)
        shard, tallies = self.state.shard, self.tallies
        tallies[shard, "total", "orders"] -= last.orders
        tallies[shard, "total", "revenue"] -= last.revenue
        self._take(user_id, changes, daily, -1)

    def user(
        self, user_id: str, entry: Entry, before: Hot | None, changes: list[Change], daily: list[Daily], src: int
    ) -> None:
        """Take over what `decide` or `tick` made of a user; `entry.hot` is the user afterwards."""
        after = entry.hot
        assert after is not None
        self.dirty[user_id] = entry
        shard, tallies = self.state.shard, self.tallies
        if before is None:
            tallies[shard, "users", "all"] += 1
        flags_before = before.flags if before is not None else 0
        if flags_before != after.flags:
            for bit, name in ROLES:
                tallies[shard, "rate", name] += bool(after.flags & bit) - bool(flags_before & bit)
        orders, revenue = (before.orders, before.revenue) if before is not None else (0, 0)
        if orders != after.orders or revenue != after.revenue:
            tallies[shard, "total", "orders"] += after.orders - orders
            tallies[shard, "total", "revenue"] += after.revenue - revenue
        self._take(user_id, changes, daily, src)

    def leaves(self, user_id: str, entry: Entry, changes: list[Change], daily: list[Daily], src: int) -> None:
        """The user is erased: their last changes, their place in every count of who is here, and their rows."""
        hot = entry.hot
        if hot is not None and not hot.merged_into:
            self._count_out(hot)
        self._take(user_id, changes, daily, src)
        self.dirty.pop(user_id, None)
        self.new_cold.discard(user_id)
        self.spilled = [row for row in self.spilled if row[1] != user_id]
        self.gone.add(user_id)
        self.state.users[user_id] = Entry(cold_known=True, spilled=NOTHING)

    def _take(self, user_id: str, changes: list[Change], daily: list[Daily], src: int) -> None:
        shard, by_day = self.state.shard, self.daily
        for day, kind, name, by in daily:
            by_day[kind, name, day, shard] += by
        for change in changes:
            seq = self._number(user_id, change, src)
            if change.kind in CHANGE_KINDS:
                self._count(user_id, change, seq)

    def _count(self, user_id: str, change: Change, seq: int) -> None:
        shard, payload, tallies = self.state.shard, change.payload, self.tallies
        match change.kind:
            case "stage_changed" | "activity_changed":
                kind = change.kind.removesuffix("_changed")
                if payload["from"] is not None:
                    tallies[shard, kind, str(payload["from"])] -= 1
                tallies[shard, kind, str(payload["to"])] += 1
            case "segment_entered":
                tallies[shard, "segment", str(payload["segment"])] += 1
            case "segment_exited":
                tallies[shard, "segment", str(payload["segment"])] -= 1
            case "cohort_entered" | "cohort_exited":
                city, relation = payload["city_id"], str(payload["relation"])
                assert isinstance(city, int)
                entered = change.kind == "cohort_entered"
                tallies[shard, "cohort", f"{relation}:{city}"] += 1 if entered else -1
                self.members[shard, city, relation, user_id] = seq if entered else None

    def _number(self, user_id: str, change: Change, src: int) -> int:
        owner, seq = self.owner, self.owner.next_seq
        owner.next_seq = seq + 1
        prev = 0
        if change.kind in CHANGE_KINDS:
            prev, owner.last_change_seq = owner.last_change_seq, seq
        elif change.kind == DEAD_LETTER:
            prev, owner.last_dead_seq = owner.last_dead_seq, seq
        self.rows.append(
            LedgerRow(
                self.state.shard, owner.gen, seq, prev, user_id, change.kind, change.payload, change.cause_type,
                change.cause_id, self.log_id, src, change.occurred_at, self.recorded_at, self.state.version,
            )
        )  # fmt: skip
        return seq

    def number(self, owner: Owner) -> None:
        """Hand the numbers this draft used to the locked owner row, which still stands where it began."""
        owner.next_seq = self.owner.next_seq
        owner.last_change_seq, owner.last_dead_seq = self.owner.last_change_seq, self.owner.last_dead_seq

    def user_rows(self) -> list[tuple[int, str, int | None, int, bytes, bytes | None]]:
        """The rows to save, by user id; each entry's due bucket becomes what the table will hold.

        An event only lowers the bucket: a lower bound is enough, and leaving the indexed column alone keeps
        the update cheap. The sweep raises it (see `raise_bucket`).
        """
        rows: list[tuple[int, str, int | None, int, bytes, bytes | None]] = []
        for user_id in sorted(self.dirty):
            entry = self.dirty[user_id]
            hot = entry.hot
            assert hot is not None
            if hot.due_at >= 0:
                bucket = hot.due_at // HOUR_MS
                entry.bucket = bucket if entry.bucket is None else min(entry.bucket, bucket)
            cold = encode_cold(entry.cold) if user_id in self.new_cold and entry.cold is not None else None
            entry.known = True
            rows.append((self.state.shard, user_id, entry.bucket, hot.rules_version, encode_hot(hot), cold))
        return rows


def raise_bucket(entry: Entry) -> None:
    """Let the table's due bucket be what the state says."""
    assert entry.hot is not None
    entry.bucket = entry.hot.due_at // HOUR_MS if entry.hot.due_at >= 0 else None
