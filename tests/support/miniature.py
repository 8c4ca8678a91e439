"""The road from raw to the public topics in one process's memory: the product's own code, with lists for its servers.

Real: `Intake.judge`, `Segmenter`, `Sweeper`, `FencedReader.commit`, `Publisher`. In memory: topics, tables, the relay.
Nothing waits for anything, so coroutines are run by hand (`drive`), without an event loop or a socket.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

import msgspec
import pytest
from msgspec.structs import replace

from services.ingest.domain.intake import Intake, Misplaced, RawRecord, Requested, RequestKind, Taken
from services.ingest.privacy import requests
from services.segmenter import erasing, merger, saving, store
from services.segmenter.pipeline import Segmenter
from services.segmenter.publish import Publisher
from services.segmenter.shard import Draft, Erasure, MergeLogged
from shared.contracts.events import Accepted, Erase, Moved, Readmit, Rejected, TimeRecord, encode
from shared.contracts.identifiers import message_hash, record_digest, shard_of
from shared.contracts.rules import Rules, encode_rules
from shared.contracts.topics import Names
from shared.data import shard_owner
from shared.data.control import RulesBook
from shared.data.ledger import FEED_ONLY_KINDS, OVERWRITTEN, LedgerRow
from shared.data.shard_owner import Owner, Position
from shared.gazetteer import load as load_gazetteer
from shared.kafka import fenced_reader
from shared.kafka.fenced_reader import FencedReader, OwnedShard
from shared.kafka.shard_consumer import Polled
from tests.support.oracle_snapshot import Snapshot
from tests.support.oracle_topics import Seen

LOG = "log-of-the-test"
SALT = "salt"
EVENTS = "app.events.v1"
MERGES = "user.merge.v1"
Table = dict[Any, Any]
_MERGE = ("merge_id", "shard", "teller", "told_gen", "told_seq", "at_src", "as_of", "last_tick", "rules_version")


def drive(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never really waits."""
    while True:
        try:
            work.send(None)
        except StopIteration as done:
            return done.value


class Read(NamedTuple):
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Clock:
    """Product time as the test sets it; ledger rows are written at that moment, too."""

    def __init__(self) -> None:
        self.now = 0

    def now_ms(self) -> int:
        return self.now

    def real_ms(self) -> int:
        return self.now


class _Group:
    """The group of one member, which reads nothing by itself."""

    generation = 0

    def lag(self) -> int:
        return 0

    def held_seconds(self) -> float:
        return 0.0


class _Told:
    """What other shards tell, read by one owner; `told_most` records of a shard at a time."""

    topic = MERGES

    def __init__(self, world: Miniature) -> None:
        self._world = world
        self._at: dict[int, int] = {}

    async def own(self, positions: Mapping[int, Position]) -> None:
        self._at = {shard: position.next_offset for shard, position in positions.items()}

    async def fetch(self, shards: Iterable[int], *, max_records: int) -> Polled:
        records: dict[int, list[Any]] = {}
        for shard in shards:
            page = self._world.topics[MERGES][shard][self._at[shard] :][: self._world.told_most]
            if page:
                records[shard] = [Read(shard, r.offset, r.timestamp, r.key, r.value) for r in page]
                self._at[shard] = page[-1].offset + 1
        return Polled(records, {shard: self._at[shard] for shard in records})

    def read_up(self, shard: int, position: int) -> bool:
        return position >= len(self._world.topics[MERGES][shard])


class Miniature:
    """One installation: topics and tables. `owner()` makes a segmenter that owns every shard from then on."""

    def __init__(self, rules: Mapping[int, Rules], patch: pytest.MonkeyPatch, shards: int = 2) -> None:
        self.rules, self.shards, self.clock = dict(rules), shards, Clock()
        self.topics: dict[str, dict[int, list[Seen]]] = defaultdict(lambda: {s: [] for s in range(shards)})
        self.users: Table = {}
        self.spilled: set[tuple[int, str, int, int]] = set()
        self.tallies: defaultdict[tuple[int, str, str], int] = defaultdict(int)
        self.daily: defaultdict[tuple[str, str, int, int], int] = defaultdict(int)
        self.members: Table = {}
        self.ticks: list[tuple[int, int, int, str, int, int]] = []
        self.times: Table = {}
        self.ledger: list[LedgerRow] = []
        self.owners = {s: Owner(s, 0, 1, 1, 0, 0, 0) for s in range(shards)}
        self.positions = {s: Position(EVENTS, LOG) for s in range(shards)}
        self.suppressed: dict[int, set[bytes]] = {s: set() for s in range(shards)}
        self.erased: list[Erasure] = []
        self._asked = 0
        self.merges: list[MergeLogged] = []
        self.told: dict[int, dict[str, Position]] = {}
        self.told_most = 1000
        self._intake: dict[int, Intake] = {}
        self._gazetteer = load_gazetteer()
        self._publisher = Publisher(Names(""))
        self._install(patch)

    # -- ingest

    def post(self, event: Mapping[str, Any], received_at: int) -> int:
        """Append an event to raw, in its user's partition; the partition."""
        user = str(event.get("userId") or event.get("anonymousId") or "nobody")
        shard = shard_of(user, self.shards)
        headers = {"received_at": str(received_at).encode(), "source": b"app"}
        self._append("app.events.raw.v1", shard, user.encode(), msgspec.json.encode(event), received_at, headers)
        return shard

    def ask(self, kind: RequestKind, user: str, at: int) -> int:
        """Append a request about a user to raw, as the gateway does; the partition."""
        shard = shard_of(user, self.shards)
        self._asked += 1
        asked = requests.record(kind, user, f"er-{self._asked}", at)
        self._append("app.events.raw.v1", shard, asked.key, asked.value, at, dict(asked.headers))
        return shard

    def overwrite(self) -> None:
        """What is done to the ledger once everyone was told of an erasure."""
        for one in self.erased:
            for n, row in enumerate(self.ledger):
                if (row.shard, row.user_id) == (one.shard, one.user_id) and row.seq <= one.seq:
                    feed_only = row.kind in FEED_ONLY_KINDS
                    self.ledger[n] = replace(
                        row,
                        user_id="" if feed_only else f"erased-{message_hash(one.erasure_id):024x}",
                        src=OVERWRITTEN,
                        payload={} if feed_only or row.kind == "user_merged" else row.payload,
                    )
        self.erased = []

    def decide(self, shard: int, version: int, since: int | None = None) -> None:
        """Decide what is undecided (or, as a second ingest would, what lies behind `since`)."""
        raw = self.topics["app.events.raw.v1"][shard]
        prev = since if since is not None else self._last_decided(shard)
        for record in raw[prev + 1 :]:
            verdict = self._judge(version).judge(
                RawRecord(shard, record.offset, record.key, record.value, record.headers, record.timestamp)
            )
            digest = record_digest(record.key, record.value)
            at = record.timestamp
            decision: Accepted | Rejected | Moved | Erase | Readmit
            if isinstance(verdict, Taken):
                decision = Accepted(
                    record.offset, prev, digest, version, verdict.user_id, verdict.message_id, verdict.name,
                    verdict.occurred_at, at, verdict.mode, verdict.source, verdict.city_id, verdict.properties,
                    verdict.context, verdict.identifies,
                )  # fmt: skip
            elif isinstance(verdict, Misplaced):
                decision = Moved(record.offset, prev, digest, version, verdict.shard)
            elif isinstance(verdict, Requested):
                kind = Readmit if verdict.readmit else Erase
                decision = kind(record.offset, prev, digest, version, verdict.user_id, verdict.message_id, at)
            else:
                decision = Rejected(
                    record.offset, prev, digest, version, verdict.user_id, verdict.message_id, verdict.reason, at,
                    verdict.source,
                )  # fmt: skip
            self._append(EVENTS, shard, record.key, encode(decision), at)
            prev = record.offset

    def tell_time(self, shard: int, as_of: int, version: int) -> None:
        record = TimeRecord(self._last_decided(shard), b"", version, as_of)
        self._append(EVENTS, shard, b"", encode(record), as_of)

    def _judge(self, version: int) -> Intake:
        if version not in self._intake:
            self._intake[version] = Intake(self.rules[version], self._gazetteer, self.shards)
        return self._intake[version]

    def _last_decided(self, shard: int) -> int:
        decided = [msgspec.msgpack.decode(r.value or b"") for r in self.topics[EVENTS][shard]]
        return max((d[1] for d in decided), default=-1)

    def _append(
        self, topic: str, shard: int, key: bytes | None, value: bytes, at: int, headers: dict[str, bytes] | None = None
    ) -> None:
        log = self.topics[topic][shard]
        log.append(Seen(len(log), at, key, value, headers or {}))

    # -- segmenter

    def owner(self) -> OwningSegmenter:
        for one in self.owners.values():
            one.epoch += 1
        return OwningSegmenter(self)

    def publish(self, shard: int, rows: Iterable[Any]) -> None:
        for row in rows:
            if isinstance(row, LedgerRow):
                published = self._publisher.row(row)
                elsewhere = [published.elsewhere] if published.elsewhere is not None else []
                for topic, partition, record in (*((t, shard, r) for t, r in published.records), *elsewhere):
                    self._append(topic, partition, record.key, record.value, row.recorded_at, dict(record.headers))

    # -- what the oracle looks at

    def reached(self) -> object:
        """How far everything was read and written: the same again once there is nothing to do."""
        told = {shard: several[MERGES].next_offset for shard, several in self.told.items()}
        return {shard: one.next_offset for shard, one in self.positions.items()}, told, len(self.ledger)

    def snapshot(self) -> Snapshot:
        columns = ("shard", "tick_id", "at_src", "as_of", "rules_version")
        owner_columns = ("gen", "next_seq", "relayed", "last_change_seq", "last_dead_seq")
        return Snapshot(
            self.shards,
            {version: msgspec.json.decode(encode_rules(rules)) for version, rules in self.rules.items()},
            salt=SALT,
            log_ids={LOG},
            raw=self.topics["app.events.raw.v1"],
            events=self.topics[EVENTS],
            changes=self.topics["segment.changes.v1"],
            feed=self.topics["user.feed.v1"],
            dead=self.topics["dead.letters.v1"],
            outcomes=self.topics["push.outcomes.v1"],
            positions={s: p.last_src for s, p in self.positions.items()},
            owners=[
                {"service": "segmenter", "shard": s, **{name: getattr(o, name) for name in owner_columns}}
                for s, o in self.owners.items()
            ],
            ticks=[
                dict(zip(columns, (t[0], number, t[2], t[4], t[5]), strict=True)) for number, t in enumerate(self.ticks)
            ],
            merge=self.topics[MERGES],
            merges=[dict(zip(_MERGE, (number, *m[:5], *m[6:9]), strict=True)) for number, m in enumerate(self.merges)],
            times=[{"shard": s, "watermark": row[0]} for s, row in self.times.items()],
            users=[
                {"shard": s, "user_id": u, "due_bucket": row[0], "rules_version": row[1], "hot": row[2], "cold": row[3]}
                for (s, u), row in self.users.items()
            ],
            tallies=[{"shard": s, "kind": k, "name": n, "users": c} for (s, k, n), c in self.tallies.items()],
            tallies_by_day=[
                {"kind": k, "name": n, "day": d, "shard": s, "users": c} for (k, n, d, s), c in self.daily.items()
            ],
            members=[
                {"shard": s, "city_id": c, "relation": r, "user_id": u, "entered_seq": seq}
                for (s, c, r, u), seq in self.members.items()
            ],
            ledger=[msgspec.structs.asdict(row) for row in sorted(self.ledger, key=lambda row: (row.shard, row.seq))],
        )

    # -- the tables

    def _install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("load", "load_cold", "load_spilled", "due", "walk"):
            patch.setattr(store, name, getattr(self, f"_{name}"))
        for name in (
            "save_users",
            "save_spilled",
            "add_tallies",
            "add_daily",
            "move_members",
            "log_ticks",
            "log_merges",
            "save_times",
        ):
            patch.setattr(store, name, getattr(self, f"_{name}"))
        patch.setattr(store, "times", self._times)
        patch.setattr(store, "versions", self._versions)
        patch.setattr(saving, "append", self._append_rows)
        patch.setattr(erasing, "suppressed", self._suppressed)
        patch.setattr(erasing, "save", self._save_erased)
        patch.setattr(saving, "put_positions", self._put_told)
        patch.setattr(merger, "positions", self._positions_told)
        patch.setattr(fenced_reader, "transaction", self._transaction)
        patch.setattr(shard_owner, "_LOCK", "lock")
        patch.setattr(shard_owner, "_WRITE_OWNERS", "owners")
        patch.setattr(shard_owner, "_WRITE_POSITIONS", "positions")

    @asynccontextmanager
    async def _transaction(self, pool: object) -> AsyncIterator[Any]:
        yield self

    async def fetch(self, query: str, service: str, shards: list[int]) -> list[dict[str, Any]]:
        assert query == "lock"
        names = ("shard", "epoch", "gen", "next_seq", "relayed", "last_change_seq", "last_dead_seq")
        return [{name: getattr(self.owners[s], name) for name in names} for s in shards]

    async def execute(self, query: str, service: str, *columns: list[Any]) -> None:
        for shard, *values in zip(*columns, strict=True):
            if query == "owners":
                one = self.owners[shard]
                one.next_seq, one.last_change_seq, one.last_dead_seq = values
            else:
                self.positions[shard] = Position(*values)

    async def _load(self, _: object, keys: list[store.Key]) -> dict[store.Key, tuple[int | None, bytes]]:
        return {key: (self.users[key][0], self.users[key][2]) for key in keys if key in self.users}

    async def _load_cold(self, _: object, keys: list[store.Key]) -> dict[store.Key, bytes]:
        return {key: self.users[key][3] for key in keys if key in self.users and self.users[key][3]}

    async def _load_spilled(self, _: object, keys: list[store.Key], since: int) -> dict[store.Key, set[int]]:
        return {key: {h for s, u, day, h in self.spilled if (s, u) == key and day >= since} for key in keys}

    async def _due(
        self, _: object, shard: int, bucket: int, after: tuple[int, str], limit: int
    ) -> list[tuple[str, int, bytes]]:
        found = [(row[0], u, row[2]) for (s, u), row in self.users.items() if s == shard and row[0] is not None]
        page = sorted(f for f in found if f[0] <= bucket and f[:2] > after)[:limit]
        return [(u, due, hot) for due, u, hot in page]

    async def _walk(self, _: object, shard: int, after: str, limit: int) -> list[tuple[str, int | None, bytes]]:
        found = sorted((u, row[0], row[2]) for (s, u), row in self.users.items() if s == shard and u > after)
        return found[:limit]

    async def _save_users(self, _: object, rows: list[tuple[int, str, int | None, int, bytes, bytes | None]]) -> None:
        for shard, user, bucket, version, hot, cold in rows:
            before = self.users.get((shard, user))
            self.users[shard, user] = (bucket, version, hot, cold or (before[3] if before else None))

    async def _save_spilled(self, _: object, rows: list[tuple[int, str, int, int]]) -> None:
        self.spilled.update(rows)

    async def _add_tallies(self, _: object, deltas: Mapping[tuple[int, str, str], int]) -> None:
        for key, delta in deltas.items():
            self.tallies[key] += delta

    async def _add_daily(self, _: object, deltas: Mapping[tuple[str, str, int, int], int]) -> None:
        for key, delta in deltas.items():
            self.daily[key] += delta

    async def _move_members(self, _: object, moves: Mapping[Any, int | None]) -> None:
        for key, seq in moves.items():
            if seq is None:
                self.members.pop(key, None)
            else:
                self.members[key] = seq

    async def _log_ticks(self, _: object, rows: list[tuple[int, int, int, str, int, int]]) -> None:
        self.ticks += rows

    async def _log_merges(self, _: object, rows: list[MergeLogged]) -> None:
        self.merges += rows

    async def _put_told(self, _: object, service: str, positions: Mapping[int, Iterable[Position]]) -> None:
        for shard, several in positions.items():
            self.told.setdefault(shard, {}).update({one.source: one for one in several})

    async def _positions_told(self, _: object, service: str, shards: Iterable[int]) -> dict[int, dict[str, Position]]:
        return {shard: dict(self.told.get(shard, {})) for shard in shards}

    async def _save_times(self, _: object, rows: list[tuple[int, int, int, int, str | None]]) -> None:
        self.times.update({row[0]: row[1:] for row in rows})

    async def _times(self, _: object, shards: Iterable[int]) -> dict[int, dict[str, Any]]:
        names = ("watermark", "last_tick", "rules_version", "rules_cursor")
        return {s: dict(zip(names, self.times[s], strict=True)) for s in shards if s in self.times}

    async def _versions(self, _: object, shards: Iterable[int]) -> dict[int, list[tuple[int, int]]]:
        found: dict[int, dict[int, int]] = {s: {} for s in shards}
        for shard, _seq, _at, _log, as_of, version in self.ticks:
            found[shard][version] = min(as_of, found[shard].get(version, as_of))
        return {s: [(since, v) for v, since in sorted(by.items())] for s, by in found.items()}

    async def _suppressed(self, _: object, shards: Iterable[int]) -> tuple[str, dict[int, set[bytes]]]:
        return SALT, {shard: set(self.suppressed[shard]) for shard in shards}

    async def _save_erased(self, _: object, drafts: Iterable[Draft]) -> None:
        for draft in drafts:
            shard = draft.state.shard
            self.suppressed[shard] |= {number for number, erased in draft.suppressed.items() if erased}
            self.suppressed[shard] -= {number for number, erased in draft.suppressed.items() if not erased}
            self.users = {key: row for key, row in self.users.items() if key[0] != shard or key[1] not in draft.gone}
            self.spilled = {row for row in self.spilled if row[0] != shard or row[1] not in draft.gone}
            self.erased += [one for one in draft.erasures if one.kind == "erase"]

    async def _append_rows(self, _: object, rows: list[LedgerRow]) -> None:
        self.ledger += rows


class OwningSegmenter:
    """A segmenter that took every shard at its making; another one made later fences it off."""

    def __init__(self, world: Miniature) -> None:
        self._world = world
        book = RulesBook()
        for version, rules in world.rules.items():
            book._learn(version, rules)
        self.segmenter = Segmenter(
            cast(Any, None), book, cast(Any, self), Publisher(Names("")), cast(Any, world.clock),
            merges=cast(Any, _Told(world)), all_shards=world.shards, most_cached=100_000,
        )  # fmt: skip
        nothing: Any = None
        self.reader = FencedReader(
            service="segmenter", topic=EVENTS, consumer=cast(Any, _Group()), reader=nothing, pool=nothing, worker=self.segmenter,
            health=nothing, numbers_survive=False, max_records=1000, heartbeat_seconds=1,
        )  # fmt: skip
        self.segmenter.reader = self.reader
        self.reader.shards = {
            s: OwnedShard(copy.copy(world.owners[s]), world.positions[s]) for s in range(world.shards)
        }
        drive(self.segmenter.take(cast(Any, None), self.reader.shards))
        drive(self.segmenter.merger.taken(self.segmenter.shards))

    def work(self, most: int = 1000) -> None:
        """Apply what follows the positions, then whatever is due."""
        records: dict[int, list[Any]] = {}
        positions = {}
        for shard, one in self.reader.shards.items():
            log = self._world.topics[EVENTS][shard]
            page = log[one.position.next_offset : one.position.next_offset + most]
            if page:
                records[shard] = [Read(shard, r.offset, r.timestamp, r.key, r.value) for r in page]
                positions[shard] = page[-1].offset + 1
        if positions:
            drive(self.segmenter.handle(Polled(records, positions)))
        drive(self.segmenter.merger.step())
        drive(self.segmenter._sweeper.step())

    # the relay, as the segmenter sees it

    async def room(self) -> None:
        return

    def put(self, shard: int, rows: Iterable[Any]) -> None:
        self._world.publish(shard, rows)

    def own(self, shards: Iterable[int]) -> None:
        return

    def disown_all(self) -> None:
        return
