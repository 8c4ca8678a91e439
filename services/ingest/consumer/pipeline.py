"""The way of a raw record to its decision: read, judge, emit — and where to resume after anything.

Its output is its commit: the last record of `app.events.v1[p]` says which raw record was decided last.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.ingest.domain import replaying
from services.ingest.domain.intake import Intake, Misplaced, RawRecord, Requested, Taken, Verdict, raw_record
from services.ingest.domain.tracking_plan import Violation
from shared.contracts.events import (
    Accepted,
    Decision,
    Erase,
    Moved,
    Readmit,
    Rejected,
    TimeRecord,
    decode_decision,
    encode,
)
from shared.contracts.identifiers import record_digest
from shared.kafka.log_reader import LogReader
from shared.kafka.records import InRecord
from shared.kafka.sender import Record, Sender
from shared.kafka.shard_consumer import Polled, Reassigned, ShardConsumer
from shared.process.clock import Clock, monotonic
from shared.process.crash import POINTS
from shared.process.errors import LogReplaced, Transient
from shared.process.http import Health
from shared.process.metrics import (
    EVENT_AGE,
    HELD,
    INGEST_DECISIONS,
    INGEST_REJECTIONS,
    INGEST_RESUMES,
    INGEST_VIOLATIONS,
    LAG,
    OWNED_SHARDS,
    TRANSIENT,
    begin_each,
)
from shared.process.retry import backoff_seconds

log = logging.getLogger("perennial.ingest")


@dataclass(slots=True)
class _Proof:
    """A clock value waiting to be proven: every fetch answered after it was sent found nothing more."""

    as_of: int
    mark: int
    answers: int = 0


@dataclass(slots=True)
class _Partition:
    """Where one raw partition stands: everything up to `src` is decided, reading goes on at `position`."""

    src: int
    digest: bytes
    position: int
    rules: int = 0
    as_of: int = 0
    said_at: float = 0.0
    proof: _Proof | None = None
    rewinds: list[int] = field(default_factory=list)


class Pipeline:
    def __init__(
        self,
        *,
        consumer: ShardConsumer,
        reader: LogReader,
        sender: Sender,
        clock: Clock,
        health: Health,
        raw_topic: str,
        events_topic: str,
        batch_records: int,
        time_seconds: float,
    ) -> None:
        self._consumer, self._reader, self._sender = consumer, reader, sender
        self._clock, self._health = clock, health
        self._raw, self._events = raw_topic, events_topic
        self._batch_records, self._time_seconds = batch_records, time_seconds
        self._partitions: dict[int, _Partition] = {}
        self._generation = -1
        self._by_source: Counter[tuple[str, bool]] = Counter()
        self._intake: Intake | None = None
        self._rules_version = 0
        TRANSIENT.labels("ingest")
        begin_each(INGEST_DECISIONS, ("accepted", "rejected", "moved", "erase", "readmit"))
        LAG.labels("ingest").set_function(lambda: float(self._consumer.lag()))
        HELD.labels("ingest").set_function(self._consumer.held_seconds)
        self._age = EVENT_AGE.labels("ingest")

    def use_rules(self, version: int, intake: Intake) -> None:
        self._rules_version, self._intake = version, intake

    def judge(self, raw: RawRecord) -> Verdict:
        """What would be decided of this record now."""
        assert self._intake is not None
        return self._intake.judge(raw)

    def rewind(self, partition: int, after: int) -> bool:
        """Decide again everything behind raw offset `after`; False where the partition is not served here."""
        standing = self._partitions.get(partition)
        if standing is None:
            return False
        standing.rewinds.append(after)
        return True

    def by_source(self) -> Counter[tuple[str, bool]]:
        """How many events of each source were accepted (True) and rejected since this was last asked; roughly, for what
        is decided again counts again."""
        found, self._by_source = self._by_source, Counter()
        return found

    async def run(self) -> None:
        """Decide for ever. Ends only by an exception: `Fatal` means that going on would lose events."""
        attempt = 0
        while True:
            self._health.beat("ingest")
            try:
                if self._generation != self._consumer.generation:
                    await self._take_over()
                await self._round()
                attempt = 0
            except Reassigned:
                continue
            except Transient as error:
                TRANSIENT.labels("ingest").inc()
                log.warning("%s", error)
                await asyncio.sleep(backoff_seconds(attempt))
                attempt += 1

    async def _take_over(self) -> None:
        """Forget everything, then resume each assigned partition from the topic's own last decision."""
        generation = self._consumer.generation
        self._partitions = {}
        await self._resume(sorted(self._consumer.assigned()))
        if generation != self._consumer.generation:
            raise Reassigned
        self._generation = generation
        OWNED_SHARDS.labels("ingest").set(len(self._partitions))
        if self._partitions:
            self._health.ready()

    async def _resume(self, partitions: Sequence[int]) -> None:
        if not partitions:
            return
        tails = await self._reader.last(self._events, partitions)
        decided = {p: decode_decision(r.value) for p, r in tails.items() if r is not None and r.value is not None}
        await self._require_same_log({p: d for p, d in decided.items() if d.src >= 0})
        starts = await self._reader.starts(self._raw, partitions)
        for p in partitions:
            last = decided.get(p)
            src = last.src if last is not None else -1
            standing = _Partition(src, last.digest if last is not None else b"", max(src + 1, starts[p]))
            standing.rules = last.rules if last is not None else 0
            if isinstance(last, TimeRecord):
                standing.as_of = last.as_of
            self._partitions[p] = standing
            self._consumer.seek(p, standing.position)
            INGEST_RESUMES.inc()

    async def _require_same_log(self, decided: dict[int, Decision]) -> None:
        """`LogReplaced` unless raw still holds, at each decided offset, the record that was decided."""
        if not decided:
            return
        found = await self._reader.at(self._raw, {p: d.src for p, d in decided.items()})
        starts = await self._reader.starts(self._raw, decided)
        for p, decision in decided.items():
            record = found[p]
            if record is None:
                if decision.src < starts[p]:
                    continue  # retention took the proof; the log start lies behind it
                raise LogReplaced(
                    f"{self._raw}[{p}] ends before offset {decision.src}, which was decided: the topic was re-created"
                    " or lost its end. Nothing more is decided here; restore the topic or make a new installation."
                )
            if record_digest(record.key, record.value) != decision.digest:
                raise LogReplaced(
                    f"{self._raw}[{p}] holds another record at offset {decision.src} than the one that was decided:"
                    " the topic was re-created. Restore it or make a new installation."
                )

    async def _round(self) -> None:
        if not self._partitions:
            await asyncio.sleep(0.05)
            return
        self._rewind()
        polled = await self._consumer.fetch(self._partitions, timeout_ms=50, max_records=self._batch_records)
        if polled.positions:
            await self._decide(polled)
        await self._tell_time()
        self._consumer.show({p: standing.position for p, standing in self._partitions.items()})

    def _rewind(self) -> None:
        for p, standing in self._partitions.items():
            if standing.rewinds:
                after = min(standing.rewinds)
                standing.rewinds.clear()
                if after >= standing.src:
                    continue
                standing.src, standing.digest = after, b""
                standing.position, standing.proof = after + 1, None
                self._consumer.seek(p, after + 1)
                log.warning("deciding again", extra={"fields": {"partition": p, "after": after}})

    async def _decide(self, polled: Polled) -> None:
        """Judge each partition's records under one rules version; the broker takes one's decisions while the next
        one's are judged."""
        assert self._intake is not None
        version, intake = self._rules_version, self._intake
        work: list[asyncio.Task[None]] = []
        try:
            for p, records in polled.records.items():
                outgoing, moved = self._judge(p, records, version, intake)
                work.append(asyncio.create_task(self._emit(p, outgoing, moved)))
                await asyncio.sleep(0)
        finally:
            # nothing is on its way any more when this ends, however it ends
            results = await asyncio.gather(*work, return_exceptions=True)
        failed: list[BaseException] = []
        for p, result in zip(polled.records, results, strict=True):
            if isinstance(result, BaseException):
                failed.append(result)
                continue
            standing, last = self._partitions[p], polled.records[p][-1]
            standing.src, standing.digest = last.offset, record_digest(last.key, last.value)
            standing.rules = version
            first = raw_record(polled.records[p][0], self._clock.now_ms())
            if replaying.OF not in first.headers:
                self._age.observe(max(0, self._clock.now_ms() - first.received_at) / 1000)
        for p, position in polled.positions.items():
            self._partitions[p].position = position
        if failed:
            # what was appended is not known: every partition resumes from its topic
            self._generation = -1
            raise next((e for e in failed if not isinstance(e, Transient)), failed[0])

    def _judge(
        self, p: int, records: list[InRecord], version: int, intake: Intake
    ) -> tuple[list[Record], list[tuple[int, Record]]]:
        """One decision per raw record, in order; and what has to be produced again elsewhere first."""
        outgoing: list[Record] = []
        moved: list[tuple[int, Record]] = []
        prev, now = self._partitions[p].src, self._clock.now_ms()
        counts: dict[str, int] = {}
        by_source = self._by_source
        for record in records:
            raw = raw_record(record, now)
            digest = record_digest(record.key, record.value)
            verdict = intake.judge(raw)
            decision: Decision
            if isinstance(verdict, Taken):
                decision = Accepted(
                    record.offset, prev, digest, version, verdict.user_id, verdict.message_id, verdict.name,
                    verdict.occurred_at, raw.received_at, verdict.mode, verdict.source, verdict.city_id,
                    verdict.properties, verdict.context, verdict.identifies,
                )  # fmt: skip
                counts["accepted"] = counts.get("accepted", 0) + 1
                by_source[verdict.source, True] += 1
                _count(verdict.violations)
                key = record.key
            elif isinstance(verdict, Misplaced):
                decision = Moved(record.offset, prev, digest, version, verdict.shard)
                moved.append((verdict.shard, _again(raw, verdict)))
                counts["moved"] = counts.get("moved", 0) + 1
                key = verdict.user_id.encode()
            elif isinstance(verdict, Requested):
                kind = Readmit if verdict.readmit else Erase
                decision = kind(
                    record.offset, prev, digest, version, verdict.user_id, verdict.message_id, raw.received_at
                )
                name = kind.__name__.lower()
                counts[name] = counts.get(name, 0) + 1
                key = record.key
            else:
                decision = Rejected(
                    record.offset, prev, digest, version, verdict.user_id, verdict.message_id, verdict.reason,
                    raw.received_at, verdict.source, replaying.OF in raw.headers,
                )  # fmt: skip
                counts["rejected"] = counts.get("rejected", 0) + 1
                if not decision.replay:
                    by_source[verdict.source, False] += 1
                INGEST_REJECTIONS.labels(verdict.reason.partition(":")[0]).inc()
                _count(verdict.violations)
                key = record.key
            outgoing.append(Record(key, encode(decision)))
            prev = record.offset
        for verdict_name, count in counts.items():
            INGEST_DECISIONS.labels(verdict_name).inc(count)
        return outgoing, moved

    async def _emit(self, p: int, outgoing: list[Record], moved: list[tuple[int, Record]]) -> None:
        for shard, record in moved:
            log.warning("misplaced record", extra={"fields": {"partition": p, "to": shard}})
            await self._sender.send(self._raw, shard, [record])
        POINTS.passing("ingest.before_send")
        await self._sender.send(self._events, p, outgoing)
        POINTS.passing("ingest.after_send")

    async def _tell_time(self) -> None:
        """Say which moment each partition has reached, once it is proven; and which rules are in force."""
        now = monotonic()
        due: dict[int, Record] = {}
        for p, standing in self._partitions.items():
            if standing.src >= 0 and not standing.digest:
                continue  # just rewound: what would prove raw[src] is not at hand until more is decided
            reached = self._reached(p, standing, now)
            if reached is None and standing.rules == self._rules_version:
                continue
            as_of = reached if reached is not None else standing.as_of
            standing.as_of, standing.rules = max(as_of, standing.as_of), self._rules_version
            due[p] = Record(b"", encode(TimeRecord(standing.src, standing.digest, self._rules_version, standing.as_of)))
        if due:
            results = await asyncio.gather(
                *(self._sender.send(self._events, p, [record]) for p, record in due.items()), return_exceptions=True
            )
            for result in results:
                if isinstance(result, BaseException):
                    self._generation = -1
                    raise result

    def _reached(self, p: int, standing: _Partition, now: float) -> int | None:
        """The moment this partition has been read up to, or None where that is not proven (yet, or anew)."""
        at_end, mark = self._consumer.at_end(p, standing.position)
        proof = standing.proof
        if proof is None:
            if now - standing.said_at >= self._time_seconds:
                standing.proof = _Proof(self._clock.now_ms(), mark)
            return None
        if mark != proof.mark:
            proof.mark = mark
            proof.answers += 1
        # the first answer may be to a fetch sent before the clock was read; the second is not
        if proof.answers < 2 or not at_end:
            return None
        standing.proof = None
        standing.said_at = now
        return proof.as_of


def _count(violations: tuple[Violation, ...]) -> None:
    for found in violations:
        INGEST_VIOLATIONS.labels(found.event, found.action, found.keyword).inc()


def _again(raw: RawRecord, verdict: Misplaced) -> Record:
    headers = {
        **raw.headers,
        "message_id": verdict.message_id.encode(),
        "received_at": str(raw.received_at).encode(),
    }
    return Record(verdict.user_id.encode(), raw.value or b"", list(headers.items()))
