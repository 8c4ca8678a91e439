"""How asked-for replays are done: letter by letter back into raw, each once, whatever dies in between.

A batch is noted before it is sent, and marked when it was acknowledged. One that was noted and not marked is looked for
in raw, behind where raw ended when it was noted; only what is not there is sent. One process at a time does a replay
(a lease); should two, the message id makes the second one's records repeats.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple

import asyncpg

from services.ingest.domain import replaying
from services.ingest.domain.intake import RawRecord, Refused, Verdict, raw_record
from services.ingest.letters.reading import raw_at
from services.ingest.letters.requests import Asked, decode_asked
from shared.data.db import Pool, transaction
from shared.kafka.log_reader import LogReader
from shared.kafka.sender import Record, Sender
from shared.process.clock import Clock
from shared.process.errors import Transient
from shared.process.http import Health
from shared.process.metrics import INGEST_REPLAYS, begin_each
from shared.process.retry import backoff_seconds

log = logging.getLogger("perennial.ingest.replay")

_BATCH = 200
_LOOK_SECONDS = 2.0
_BETWEEN_SECONDS = 0.05
"""Live events go first: a replay leaves them room between two batches."""

_CLAIM = """
UPDATE control.replay SET worker = $1, lease_until = now() + interval '60 seconds'
WHERE replay_id = (
    SELECT replay_id FROM control.replay
    WHERE finished_at IS NULL AND (worker = $1 OR lease_until < now())
    ORDER BY requested_at LIMIT 1 FOR UPDATE SKIP LOCKED
) RETURNING *
"""
_LETTERS = """
SELECT d.seq, d.src, d.log_id = i.log_id AS here, coalesce(r.sent, false) AS replayed, i.log_id
FROM audience.dead_letter d CROSS JOIN control.installation i
LEFT JOIN control.replayed r ON r.log_id = d.log_id AND r.shard = d.shard AND r.src = d.src
WHERE starts_with(d.reason, $1) AND ($2 = '' OR d.user_id = $2) AND ($3 = '' OR d.source = $3)
    AND d.received_at >= $4 AND d.received_at < $5
    AND d.shard = $6 AND d.seq > $7 AND d.seq <= $8 AND d.src >= 0
    AND ($9::bigint[] IS NULL OR d.src = ANY($9::bigint[]))
ORDER BY d.seq LIMIT $10
"""
_NOTE = """
INSERT INTO control.replayed (log_id, shard, src, replay_id)
SELECT $1, $2, src, $3 FROM unnest($4::bigint[]) AS noted (src)
ON CONFLICT (log_id, shard, src) DO UPDATE SET replay_id = excluded.replay_id WHERE NOT replayed.sent
"""
_ADVANCE = """
UPDATE control.replay SET shard = $3, seq = $4, raw_end = $5, refused_still = refused_still + $6,
    replayed_before = replayed_before + $7, gone = gone + $8, sent = sent + $9
WHERE replay_id = $1 AND worker = $2
"""
_OPEN = "SELECT src FROM control.replayed WHERE replay_id = $1 AND shard = $2 AND NOT sent ORDER BY src"
_MARK = "UPDATE control.replayed SET sent = true WHERE replay_id = $1 AND shard = $2 AND NOT sent"
_CLOSE_BATCH = "UPDATE control.replay SET raw_end = NULL, sent = sent + $3 WHERE replay_id = $1 AND worker = $2"
_FINISH = "UPDATE control.replay SET finished_at = now() WHERE replay_id = $1 AND worker = $2"


class _Sorted(NamedTuple):
    """The letters of one page: records to send, by their offset, and how many others there were of each kind."""

    records: dict[int, Record]
    refused: int
    before: int
    gone: int


class Replayer:
    """`judge` is what ingest would decide of a raw record today."""

    def __init__(
        self,
        pool: Pool,
        reader: LogReader,
        sender: Sender,
        raw_topic: str,
        judge: Callable[[RawRecord], Verdict],
        clock: Clock,
        health: Health,
        worker: str,
    ) -> None:
        self._pool, self._reader, self._sender, self._raw = pool, reader, sender, raw_topic
        self._judge, self._clock, self._health, self._worker = judge, clock, health, worker
        begin_each(INGEST_REPLAYS, ("sent", "refused_still", "gone"))

    async def run(self) -> None:
        attempt = 0
        while True:
            self._health.beat("replays", 120)
            try:
                busy = await self.step()
                attempt = 0
            except Transient as error:
                log.warning("%s", error)
                await asyncio.sleep(backoff_seconds(attempt, most=10.0))
                attempt += 1
                continue
            await asyncio.sleep(_BETWEEN_SECONDS if busy else _LOOK_SECONDS)

    async def step(self) -> bool:
        """One batch of the oldest open replay; False where there is none. `Transient`: ask again."""
        async with transaction(self._pool) as connection:
            replay = await connection.fetchrow(_CLAIM, self._worker)
        if replay is None:
            return False
        if replay["raw_end"] is not None:
            await self._complete(replay)
        else:
            await self._next(replay, decode_asked(replay["filters"]))
        return True

    async def _next(self, replay: asyncpg.Record, asked: Asked) -> None:
        """See to the next letters; a page without any ends its shard, and the last shard the replay."""
        shard, upto = replay["shard"], replay["upto"]
        while shard < len(upto):
            seq = replay["seq"] if shard == replay["shard"] else 0
            async with transaction(self._pool) as connection:
                page = await connection.fetch(
                    _LETTERS, *asked.arguments(), shard, seq, upto[shard], asked.offsets(shard), _BATCH
                )
            if page:
                await self._send_page(replay, asked, shard, page)
                return
            shard += 1
        async with transaction(self._pool) as connection:
            await connection.execute(_FINISH, replay["replay_id"], self._worker)
            await connection.execute(
                "UPDATE control.replay SET shard = $2 WHERE replay_id = $1", replay["replay_id"], len(upto)
            )

    async def _send_page(
        self, replay: asyncpg.Record, asked: Asked, shard: int, page: Sequence[asyncpg.Record]
    ) -> None:
        found = await self._sorted(asked, shard, page)
        sending = bool(found.records) and not asked.dry_run
        raw_end = (await self._reader.ends(self._raw, [shard]))[shard] if sending else None
        async with transaction(self._pool) as connection:
            if sending:
                await connection.execute(_NOTE, page[0]["log_id"], shard, replay["replay_id"], list(found.records))
            advanced = await connection.execute(
                _ADVANCE, replay["replay_id"], self._worker, shard, page[-1]["seq"], raw_end, found.refused,
                found.before, found.gone, len(found.records) if asked.dry_run else 0,
            )  # fmt: skip
            if advanced == "UPDATE 0":
                raise Transient("another process took this replay over")
        if sending:
            await self._sender.send(self._raw, shard, list(found.records.values()))
            await self._close(replay, shard)
        INGEST_REPLAYS.labels("refused_still").inc(found.refused)
        INGEST_REPLAYS.labels("gone").inc(found.gone)

    async def _sorted(self, asked: Asked, shard: int, page: Sequence[asyncpg.Record]) -> _Sorted:
        open_letters = [row["src"] for row in page if row["here"] and not row["replayed"]]
        records = await raw_at(self._reader, self._raw, shard, open_letters)
        chosen: dict[int, Record] = {}
        refused = 0
        for offset in open_letters:
            record = records.get(offset)
            if record is None or (asked.event and _name(record.value) != asked.event):
                continue
            raw = raw_record(record, self._clock.now_ms())
            verdict = self._judge(raw)
            if isinstance(verdict, Refused) and not asked.force:
                refused += 1
            else:
                chosen[offset] = Record(*replaying.again(raw, verdict))
        elsewhere = sum(not row["here"] for row in page)
        return _Sorted(
            chosen,
            refused,
            before=sum(row["replayed"] for row in page),
            gone=elsewhere + len(set(open_letters) - set(records)),
        )

    async def _complete(self, replay: asyncpg.Record) -> None:
        """A batch was noted, and nobody knows whether it was sent: send what raw does not show."""
        shard = replay["shard"]
        async with transaction(self._pool) as connection:
            noted = {row["src"] for row in await connection.fetch(_OPEN, replay["replay_id"], shard)}
        missing = {replaying.address(shard, src): src for src in noted}
        async with aclosing(self._reader.behind(self._raw, {shard: replay["raw_end"]})) as pages:
            async for page in pages:
                for record in page:
                    missing.pop(dict(record.headers).get(replaying.OF, b""), None)
        records = await raw_at(self._reader, self._raw, shard, sorted(missing.values()))
        again = []
        for record in sorted(records.values(), key=lambda found: found.offset):
            raw = raw_record(record, self._clock.now_ms())
            again.append(Record(*replaying.again(raw, self._judge(raw))))
        if again:
            await self._sender.send(self._raw, shard, again)
        log.info("replay %s: a batch of %d was completed with %d", replay["replay_id"], len(noted), len(again))
        await self._close(replay, shard)

    async def _close(self, replay: asyncpg.Record, shard: int) -> None:
        async with transaction(self._pool) as connection:
            marked = await connection.execute(_MARK, replay["replay_id"], shard)
            count = int(marked.split()[-1])
            await connection.execute(_CLOSE_BATCH, replay["replay_id"], self._worker, count)
        INGEST_REPLAYS.labels("sent").inc(count)


def _name(value: bytes | None) -> str:
    """The name a track call gives its event; empty where it has none."""
    try:
        event = json.loads(value or b"")
    except (ValueError, RecursionError):
        return ""
    name = event.get("event") if isinstance(event, dict) else None
    return name if isinstance(name, str) else ""
