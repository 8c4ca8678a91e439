"""How far the product has come with what was posted: asked of its APIs, its metrics, Postgres and the log."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from services.local.up import Installation
from shared.contracts.topics import Topic
from shared.data.db import Pool, connect_pool
from shared.kafka.log_reader import LogReader
from shared.process.clock import monotonic
from shared.process.errors import Transient

_BEHIND = """
SELECT count(*) FROM spine.shard_owner o LEFT JOIN spine.shard_position p
    ON p.service = 'notifier' AND p.shard = o.shard AND p.source = $1 AND p.last_gen = o.gen
WHERE o.service = 'segmenter' AND o.next_seq > 1 AND coalesce(p.last_src, 0) < o.next_seq - 1
"""
_APPLIED = "SELECT shard, last_src FROM spine.shard_position WHERE service = 'segmenter' AND source = $1"
_CONTEXT = "SELECT coalesce(max(next_offset), 0) FROM spine.shard_position WHERE source = $1"
_OPEN = """
SELECT (SELECT count(*) FROM notifier.run_shard WHERE NOT done)
     + (SELECT count(*) FROM notifier.message WHERE state IN ('intent', 'attempted'))
"""

Sample = tuple[str, tuple[tuple[str, str], ...]]


class Meters:
    """Counters of the services, summed over their restarts as Prometheus does: by their increases."""

    def __init__(self, http: aiohttp.ClientSession, urls: dict[str, str]) -> None:
        self._session, self._urls = http, urls
        self._last: dict[tuple[str, Sample], float] = {}
        self._sums: Counter[Sample] = Counter()

    async def read(self) -> None:
        for service, url in self._urls.items():
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
                async with self._session.get(f"{url}/metrics") as answer:
                    text = await answer.text()
                for family in text_string_to_metric_families(text):
                    if family.type == "counter":
                        for sample in family.samples:
                            if sample.name.endswith("_total"):
                                self._add(service, (sample.name, tuple(sorted(sample.labels.items()))), sample.value)

    def _add(self, service: str, sample: Sample, value: float) -> None:
        before = self._last.get((service, sample), 0.0)
        self._sums[sample] += int(value - before if value >= before else value)
        self._last[service, sample] = value

    def total(self, name: str, **labels: str) -> int:
        wanted = set(labels.items())
        return sum(n for (found, of), n in self._sums.items() if found == name and wanted <= set(of))

    def by(self, name: str, label: str) -> dict[str, int]:
        """Sums by the values of one label, largest first."""
        found: Counter[str] = Counter()
        for (metric, of), n in self._sums.items():
            if metric == name and n:
                found[dict(of)[label]] += n
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


class Watch:
    """One running installation, looked at from outside."""

    def __init__(self, installation: Installation, http: aiohttp.ClientSession, database: Pool, log: LogReader) -> None:
        self.installation, self.database, self._session, self._log = installation, database, http, log
        self.meters = Meters(
            http, {name: installation.url(name) for name in ("gateway", "ingest", "segmenter", "notifier")}
        )
        self._admin = {"Authorization": f"Bearer {installation.keys.admin}"}

    async def ask(self, service: str, path: str) -> Any:
        async with self._session.get(self.installation.url(service) + path, headers=self._admin) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def tell(self, service: str, path: str, body: bytes, more: Mapping[str, str] = MappingProxyType({})) -> Any:
        headers = self._admin | {"Content-Type": "application/json"} | dict(more)
        async with self._session.post(self.installation.url(service) + path, data=body, headers=headers) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def applied(self) -> bool:
        """Whether every event in the log has been folded, and the notifier has heard of what followed."""
        names, shards = self.installation.options.names, range(self.installation.options.shards)
        ends = await self._log.ends(names.topic(Topic.RAW), shards)
        rows = await self.database.fetch(_APPLIED, names.topic(Topic.EVENTS))
        done = {row["shard"]: row["last_src"] for row in rows}
        if any(done.get(shard, -1) < end - 1 for shard, end in ends.items()):
            return False
        return not await self.database.fetchval(_BEHIND, names.topic(Topic.FEED))

    async def sent(self) -> bool:
        """Whether every alert has been judged, every run expanded and every message has its outcome."""
        topic = self.installation.options.names.topic(Topic.CONTEXT)
        end = (await self._log.ends(topic, [0]))[0]
        if await self.database.fetchval(_CONTEXT, topic) < end:
            return False
        return not await self.database.fetchval(_OPEN)


@asynccontextmanager
async def watching(installation: Installation, http: aiohttp.ClientSession) -> AsyncIterator[Watch]:
    reader = LogReader(installation.kafka)
    await reader.start()
    try:
        async with await connect_pool(installation.dsn, size=2) as database:
            yield Watch(installation, http, database, reader)
    finally:
        await reader.stop()


async def until(true: Callable[[], Awaitable[bool]], seconds: float, every: float = 0.1) -> bool:
    """Ask again and again; False when it did not come true in time."""
    deadline = monotonic() + seconds
    while monotonic() < deadline:
        with contextlib.suppress(Transient, aiohttp.ClientError, TimeoutError, ConnectionError):
            if await true():
                return True
        await asyncio.sleep(every)
    return False
