"""The road from an alert to messages in one process's memory: the product's own code, with lists for its tables.

Real: `ContextHandler`, `Runs`, `Notifier` from a page to what it commits, the fold of recipients, every gate. In memory:
the context topic, the tables, the commit. One shard; users and the feed are the test's to write.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from services.notifier import alert_chains, messages, pipeline, runs
from services.notifier.book import CampaignBook
from services.notifier.context import handler
from services.notifier.context.handler import ContextHandler
from services.notifier.context.intake import encode_context, split
from services.notifier.domain.recipient import fold
from services.notifier.messages import Message
from services.notifier.pipeline import Notifier
from services.notifier.runs import Runs
from shared.contracts.events import FeedRow
from shared.contracts.rules import Rules, encode_rules
from shared.data.shard_owner import Owner
from shared.gazetteer import load as load_gazetteer
from shared.process.clock import iso
from tests.support.miniature import Clock, drive
from tests.support.oracle_snapshot import Snapshot
from tests.support.oracle_topics import Seen

LOG = "log-of-the-test"
HOUR = 3_600_000
Row = dict[str, Any]
_RUN = (
    "run_id", "campaign", "campaign_version", "occurrence", "context_id", "log_id", "context_offset",
    "city_ids", "relations", "facts", "occurred_at", "began_at", "valid_until", "created_at",
)  # fmt: skip
_PAGE = ("run_id", "shard", "after", "seq", "context_offset", "heard_seq", "planned_at")
_BEGAN = "SELECT sent_at FROM notifier.alert_chain WHERE alert_id = $1"
_AT = "SELECT gen, last_seq FROM audience.position WHERE shard = $1"


class Alerts:
    """One installation of one shard. Everything is at hand as the statement that asks for it."""

    def __init__(self, rules: Rules, patch: pytest.MonkeyPatch) -> None:
        self.rules, self.clock = rules, Clock()
        self.clock.now = 1_760_000_000_000
        self.ledger: list[Row] = []
        self.members: dict[tuple[int, str, str], int] = {}
        self.context: list[Seen] = []
        self.chains: dict[str, Row] = {}
        self.events: dict[str, Row] = {}
        self.runs: dict[str, Row] = {}
        self.run_shards: dict[str, Row] = {}
        self.pages: list[Row] = []
        self.messages: dict[str, Row] = {}
        self._heard = 0
        self._patch(patch)
        book = CampaignBook(cast(Any, None), cast(Any, None))
        book._use(rules)
        self._gazetteer = load_gazetteer()
        self._handler = ContextHandler(book, self._gazetteer, cast(Any, self.clock), 1, lambda: None, cast(Any, None))
        self._runs = Runs(cast(Any, self), self._gazetteer)
        nothing: Any = SimpleNamespace(put=lambda *_: None, take_dead_tokens=list)
        self._notifier = Notifier(
            pool=cast(Any, self), book=book, relay=nothing, dispatcher=nothing, runs=self._runs,
            clock=cast(Any, self.clock), gazetteer=self._gazetteer, most_cached=1000,
        )  # fmt: skip
        self._notifier._recipients = {0: {}}
        self._notifier.reader = cast(Any, self)
        self.spare = False
        self._runs.own([0])

    # -- the world

    def user(self, user: str, *ties: tuple[str, int], phone: bool = True) -> None:
        if phone:
            self.tell(user, "device_set", device={"id": f"d-{user}", "type": "ios", "token": f"t-{user}"})
        for relation, city in ties:
            self.tell(user, "cohort_entered", relation=relation, city_id=city)

    def tell(self, user: str, kind: str, **payload: Any) -> None:
        """One row of the ledger, and of the audience where it is about a cohort."""
        seq = len(self.ledger) + 1
        self.ledger.append(
            {"shard": 0, "seq": seq, "user_id": user, "kind": kind, "payload": payload, "src": -1}
            | {"recorded_at": self.clock.now}
        )
        if kind.startswith("cohort"):
            key = (payload["city_id"], payload["relation"], user)
            self.members.pop(key, None)
            if kind == "cohort_entered":
                self.members[key] = seq

    def hear(self) -> None:
        """The notifier applies the whole feed."""
        known = self._notifier._recipients[0]
        for row in self.ledger[self._heard :]:
            one = FeedRow(
                1, row["seq"], row["seq"] - 1, row["user_id"], row["kind"], row["payload"], 0, 0, ("event", ""), -1, 1
            )
            known[one.user_id] = fold(known.get(one.user_id), one)
        self._heard = len(self.ledger)

    def alert(self, name: str, *cities: int, replaces: Iterable[str] = (), sent_ago: int = 60_000) -> None:
        """An alert is posted, and judged by the context handler."""
        now = self.clock.now
        body = {
            "id": name, "kind": "alert", "areas": [{"city_id": str(c)} for c in cities], "severity": "Severe",
            "starts_at": iso(now - sent_ago), "ends_at": iso(now + HOUR), "replaces": list(replaces),
            "data": {"event": "Tornado Warning"},
        }  # fmt: skip
        self.post(body)

    def post(self, body: Row) -> None:
        """A body of `POST /v1/context`, each record of it judged."""
        records, _ = split(body, self._gazetteer, self.clock.now)
        for record in records:
            offset = len(self.context)
            self.context.append(Seen(offset, self.clock.now, record.id.encode(), encode_context(record), {}))
            drive(self._handler._apply(cast(Any, self), record, LOG, offset))

    def read_pages(self) -> list[runs.Page]:
        """The next pages, as the owner of the shard is given them."""
        self._runs.poke()
        pages: list[runs.Page] = drive(self._runs.next_pages(self._notifier._heard, self.clock.now))
        return pages

    def plan(self, pages: list[runs.Page]) -> None:
        drive(self._notifier._expand(pages))

    def work(self) -> None:
        self.hear()
        while pages := self.read_pages():
            self.plan(pages)
        self.clock.now += 1

    def snapshot(self) -> Snapshot:
        return Snapshot(
            1,
            {1: msgspec.json.decode(encode_rules(self.rules))},
            ledger=self.ledger,
            messages=list(self.messages.values()),
            context=self.context,
            context_read=len(self.context) - 1,
            context_events=list(self.events.values()),
            chains=[{"alert_id": name, "chain_id": row["chain_id"]} for name, row in self.chains.items()],
            runs=list(self.runs.values()),
            run_shards=list(self.run_shards.values()),
            run_pages=self.pages,
        )

    # -- the reader and its commit

    @property
    def shards(self) -> dict[int, Any]:
        return {0: SimpleNamespace(position=SimpleNamespace(last_gen=1, last_src=self._heard))}

    async def commit(self, _: object, __: object, write: Callable[[Any, Any], Awaitable[None]]) -> None:
        await write(self, {0: Owner(0, 1, 1, 1, 0, 0, 0)})

    # -- the tables

    def _patch(self, patch: pytest.MonkeyPatch) -> None:
        async def nothing(*_: object) -> None:
            return

        async def none(*_: object) -> list[Message]:
            return []  # what is planned is sent at once, and none is left to be superseded

        async def insert(_: object, rows: list[Message]) -> set[str]:
            fresh = {row.message_id: row for row in rows if row.message_id not in self.messages}
            for name, row in fresh.items():
                # what is to be sent is sent at once
                state = {"state": "sent", "attempts": 1} if row.state == "intent" else {}
                self.messages[name] = msgspec.structs.asdict(row) | state
            return set(fresh)

        @asynccontextmanager
        async def transaction(*_: object) -> AsyncIterator[Alerts]:
            yield self

        patch.setattr(messages, "insert", insert)
        patch.setattr(messages, "supersede", none)
        patch.setattr(messages, "append_outcomes", nothing)
        patch.setattr(messages.Months, "ensure", nothing)
        patch.setattr(runs, "transaction", transaction)

    async def fetch(self, query: str, *values: Any) -> list[Row]:
        if query == pipeline._LOAD:
            return []
        if query == handler._KNOWN:
            return [self.chains[name] for name in values[0] if name in self.chains]
        if query == handler._ROOTS:
            return sorted((self.chains[name] for name in values[0]), key=lambda r: (r["sent_at"], r["alert_id"]))
        if query == handler._FOLLOWED:
            return [
                {"campaign": name}
                for name in {r["campaign"] for r in self.runs.values() if self._chain(r["occurrence"]) == values[0]}
            ]
        if query == runs._OPEN:
            return [{**s, "by_city": False} for s in self.run_shards.values() if not s["done"]]
        if query == runs._RUNS:
            return [self.runs[name] for name in values[0]]
        if query == alert_chains._NAMES:
            return [
                {**other, "run_id": name, "other": other["run_id"]}
                for name in values[0]
                for other in self.runs.values()
                if other["campaign"] == self.runs[name]["campaign"]
                and self._chain(other["occurrence"]) == self._chain(self.runs[name]["occurrence"])
            ]
        if query == alert_chains._IN_FORCE:
            return [
                {**event, "run_id": name}
                for name in values[0]
                for event in self.events.values()
                if event["verdict"] == "matched"
                and not self.chains[event["context_id"]]["replaced_by"]
                and self._chain(event["context_id"]) == self._chain(self.runs[name]["occurrence"])
            ]
        if query == alert_chains._SHOWN:
            _, users, names, _, campaign = values
            of_chain = (m for m in self.messages.values() if m["chain"] in names and m["campaign"] == campaign)
            return sorted((m for m in of_chain if m["user_id"] in users), key=lambda m: m["planned_at"])
        if query == runs._MEMBERS:
            return self._members(*values)
        assert query == runs._TOLD, query
        return [{"message_id": name} for name in values[0] if name in self.messages]

    async def fetchrow(self, query: str, *_: Any) -> Row:
        assert query == _AT, query
        return {"gen": 1, "last_seq": len(self.ledger)}

    async def fetchval(self, query: str, *values: Any) -> Any:
        if query == runs._CONTEXT_READ:
            return len(self.context) - 1
        if query == _BEGAN:
            return self.chains[values[0]]["sent_at"]
        assert query == handler._EVENT, query
        if values[0] in self.events:
            return None
        names = (
            "context_id", "kind", "chain_id", "log_id", "context_offset", "verdict", "cities", "body", "received_at",
            "city_ids", "sent_at", "valid_until",
        )  # fmt: skip
        self.events[values[0]] = dict(zip(names, values, strict=True))
        return values[0]

    async def execute(self, query: str, *values: Any) -> None:
        if query == handler._LINK:
            ids, chain, sent = values
            for name, at in zip(ids, sent, strict=True):
                row = {"alert_id": name, "chain_id": chain, "sent_at": at, "replaced_by": ""}
                self.chains.setdefault(name, row)
        elif query == handler._REPLACE:
            for name in values[1]:
                if name != values[0]:
                    self.chains[name]["replaced_by"] = self.chains[name]["replaced_by"] or values[0]
        elif query in (handler._JOIN_EVENTS, handler._JOIN):
            for row in (self.chains if query == handler._JOIN else self.events).values():
                if row["chain_id"] in values[1]:
                    row["chain_id"] = values[0]
        elif query == handler._RUN:
            self.runs[values[0]] = dict(zip(_RUN, values, strict=True)) | {"context": "alert"}
        elif query == runs.RUN_SHARDS:
            self.run_shards[values[0]] = {"run_id": values[0], "shard": 0, "cursor": "", "done": False}
        elif query == runs._ADVANCE:
            self.run_shards[values[0]] |= {"cursor": values[2], "done": values[3]}
        else:
            assert query == runs._PAGED, query
            self.pages.append(dict(zip(_PAGE, values, strict=True)))

    def _chain(self, name: str) -> str:
        chain: str = self.chains[name]["chain_id"]
        return chain

    def _members(
        self, _: int, cities: list[int], relations: list[str], after: str, names: list[str], __: object, campaign: str,
        limit: int,
    ) -> list[Row]:  # fmt: skip
        found: dict[str, list[tuple[bool, int, str, int]]] = {
            m["user_id"]: [] for m in self.messages.values() if m["chain"] in names and m["campaign"] == campaign
        }
        for (city, relation, user), seq in self.members.items():
            if city in cities and relation in relations:
                found.setdefault(user, []).append((relation != "default", city, relation, seq))
        return [
            {
                "user_id": user,
                "city_ids": [city for _, city, _, _ in sorted(ties)],
                "relations": [relation for _, _, relation, _ in sorted(ties)],
                "entered": [seq for _, _, _, seq in sorted(ties)],
            }
            for user, ties in sorted(found.items())
            if user > after
        ][:limit]
