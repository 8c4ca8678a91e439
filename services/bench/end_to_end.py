"""How many posted events a second the whole product applies, and how long a push takes from its post.

Throughput is that of a fixed backlog: posts of 20 events go in as fast as the gateway takes them, and the clock stops
when the segmenter has applied the last. Everything else runs beside it: notifier, relay, sweep, pushes. The ceiling is
the three bare programs in a row. Everybody is known before: who is new costs a push each.
"""

from __future__ import annotations

import asyncio
from typing import Any

from services.bench.figures import Figure, Round, percentile, throughput, used
from services.bench.plan import Plan, alternately
from services.bench.site import BARE_GATEWAY_OFFSET, Servers, Site, site, until
from shared.contracts.topics import Topic
from shared.process.clock import monotonic, parse_instant

_TARGET = 20_000
_USERS = 10_000
_SIZE = 20
_RATES = (200, 1_000)
_TARGET_MS = {200: (None, None), 1_000: (100.0, 500.0)}
_APPLIED = "SELECT shard, last_src FROM spine.shard_position WHERE service = 'segmenter'"
_UNSENT = "SELECT count(*) FROM notifier.message WHERE state IN ('intent', 'attempted')"


async def measure(servers: Servers, plan: Plan) -> list[Figure]:
    async with site(servers, ["gateway", "ingest", "segmenter", "notifier"], sandbox=True) as here:
        await here.helper("load", "load", {"port": servers.port, "headers": here.headers})
        await _latency(here, 100, plan.seconds, "warm")
        figures = []
        for rate in _RATES:
            figures += _told(rate, await _latency(here, rate, 2 * plan.seconds, f"r{rate}"))
        return [await _throughput(here, plan), *figures]


# -- throughput


async def _throughput(here: Site, plan: Plan) -> Figure:
    bare = await _Chain.opened(here)
    posts: dict[str, Any] = {"shape": "phones", "size": _SIZE, "users": _USERS, "tag": "e", "spread": "uniform"}
    await _posted(here, {**posts, "many": _USERS, "seed": 0, "shape": "newcomers", "size": 1, "spread": "zipf"}, 60.0)
    await _at_rest(here)
    turn = 0

    async def product() -> Round:
        nonlocal turn
        turn += 1
        many = max(1, plan.backlog(_TARGET) // _SIZE)
        asked = {**posts, "many": many, "seed": turn, "spread": plan.spread, "tag": "e"}
        found = await _posted(here, asked, plan.patience)
        await _at_rest(here)
        return found

    async def ceiling() -> Round:
        here.freeze()
        try:
            many = max(1, plan.backlog(_TARGET) // _SIZE)
            return await bare.round({**posts, "many": many, "seed": 1000 + turn, "spread": plan.spread}, many * _SIZE)
        finally:
            here.thaw(*here.children.pids())

    await ceiling()
    rounds = await alternately(plan.rounds, product, ceiling)
    note = f"fixed backlog in posts of {_SIZE}, {plan.spread} over {_USERS:,} known users"
    return throughput("end_to_end", "end to end, posted → applied", *rounds, target=_TARGET, note=note)


async def _posted(here: Site, posts: dict[str, Any], seconds: float) -> Round:
    """Post all of these once; done when everything in raw is applied."""
    await here.ask("load", {"posts": posts, "prepare": True})
    before, began = here.cpu(), monotonic()
    told = await here.ask("load", {"posts": posts, "forget": True})
    await until(lambda: _applied(here), seconds)
    return Round(told["events"], monotonic() - began, used(before, here.cpu()))


async def _applied(here: Site) -> bool:
    ends = await here.reader.ends(here.topic(Topic.RAW), range(here.shards))
    done = {row["shard"]: row["last_src"] for row in await here.database.fetch(_APPLIED)}
    return all(done.get(shard, -1) >= end - 1 for shard, end in ends.items())


async def _at_rest(here: Site) -> None:
    """Nothing is under way any more: what follows would otherwise be measured with it, or be frozen in the middle."""

    async def resting() -> bool:
        pending = await here.metric("segmenter", "perennial_relay_pending_rows")
        behind = await here.metric("notifier", "perennial_input_lag_records")
        return not pending and not behind and not await here.database.fetchval(_UNSENT)

    await until(resting, 60, every=0.1)


class _Chain:
    """Bare gateway, bare ingest and bare segmenter, one behind the other."""

    def __init__(self, here: Site) -> None:
        self._here = here

    @classmethod
    async def opened(cls, here: Site) -> _Chain:
        kafka, partitions = here.servers.address, here.shards
        posted, decided, folded = [await here.make_topic(f"bench.{name}") for name in ("posted", "decided", "folded")]
        common = {"kafka": kafka, "partitions": partitions}
        await here.helper(
            "bare gateway", "ceilings.gateway",
            {**common, "topic": posted, "port": here.servers.port + BARE_GATEWAY_OFFSET},
        )  # fmt: skip
        await here.helper("bare ingest", "ceilings.ingest", {**common, "source": posted, "target": decided})
        await here.helper(
            "bare segmenter", "ceilings.segmenter",
            {**common, "source": decided, "target": folded, "postgres": here.installation.dsn},
        )  # fmt: skip
        return cls(here)

    async def round(self, posts: dict[str, Any], events: int) -> Round:
        here = self._here
        asked = {"posts": posts, "port": here.servers.port + BARE_GATEWAY_OFFSET}
        await here.ask("load", {**asked, "prepare": True})
        here.thaw("bare gateway")
        try:
            before, began = here.cpu(), monotonic()
            await asyncio.gather(
                here.ask("load", {**asked, "forget": True}),
                here.ask("bare ingest", {"events": events}),
                here.ask("bare segmenter", {"events": events}),
            )
            return Round(events, monotonic() - began, used(before, here.cpu()))
        finally:
            here.freeze("bare gateway")


# -- from post to push


async def _latency(here: Site, rate: float, seconds: float, tag: str) -> list[float]:
    """Milliseconds from when a first opening was due to be posted to its welcome at the sandbox; one per push."""
    many = max(1, round(rate * seconds))
    posts = {"shape": "newcomers", "size": 1, "many": many, "seed": 1, "users": many, "tag": tag, "spread": "zipf"}
    cursor = (await _pushes(here, "/count"))["last"]
    told = await here.ask("load", {"posts": posts, "rate": rate, "forget": True})
    arrived: dict[str, float] = {}

    async def all_arrived() -> bool:
        nonlocal cursor
        for push in (await _pushes(here, f"?since={cursor}&limit=20000"))["items"]:
            cursor = push["n"]
            arrived.setdefault(push["token"], parse_instant(push["received_at"]))
        return sum(token.startswith(f"token-{tag}-") for token in arrived) >= many

    await until(all_arrived, 30 + seconds, every=0.2)
    due = {f"token-{tag}-{n:07d}": told["began_ms"] + 1000 * n / rate for n in range(many)}
    return [arrived[token] - at for token, at in due.items()]


async def _pushes(here: Site, path: str) -> dict[str, Any]:
    async with here.http.get(f"{here.installation.url('sandbox')}/pushes{path}") as answer:
        found: dict[str, Any] = await answer.json()
        return found


def _told(rate: int, waits: list[float]) -> list[Figure]:
    figures = []
    for percent, target in zip((50, 99), _TARGET_MS[rate], strict=True):
        value = percentile(waits, percent)
        what = f"post → push at {rate:,} new users/s, p{percent}"
        figures.append(Figure(f"push_p{percent}_at_{rate}", what, "ms", value, target=target, at_most=True))
    return figures
