"""How fast the ingest consumer decides a backlog of raw events, beside fetch, decode and send alone."""

from __future__ import annotations

import msgspec

from services.bench.figures import Figure, Round, throughput
from services.bench.gateway import memory
from services.bench.plan import Plan, alternately
from services.bench.site import Servers, Site, site
from services.bench.traffic import SOURCE, Crowd, event
from services.ingest.domain.intake_http import Event
from services.ingest.gateway.records import placing, records_by_partition
from shared.contracts.events import decode_decision
from shared.contracts.topics import Topic
from shared.process.clock import Clock, monotonic

_TARGET = 80_000
_LOOK_SECONDS = 0.5
_encode = msgspec.json.Encoder().encode


async def measure(servers: Servers, plan: Plan) -> list[Figure]:
    async with site(servers, ["ingest"]) as here:
        here.freeze("ingest")
        setup = {
            "kafka": servers.address, "source": here.topic(Topic.RAW), "target": await here.make_topic("bench.decided"),
            "partitions": here.shards,
        }  # fmt: skip
        await here.helper("bare ingest", "ceilings.ingest", setup)
        crowd, backlog = Crowd(plan.users, plan.spread), plan.backlog(_TARGET)

        async def product() -> Round:
            return await _product(here, crowd, backlog, plan.patience)

        async def ceiling() -> Round:
            return await here.asked("bare ingest", {"events": backlog})

        await alternately(1, product, ceiling)  # warms up both
        rounds = await alternately(plan.rounds, product, ceiling)
        return [throughput("ingest", "ingest consumer, raw → decided", *rounds, target=_TARGET), memory(here, "ingest")]


async def _product(here: Site, crowd: Crowd, backlog: int, patience: float) -> Round:
    now = Clock().real_ms()
    acts = crowd.acts(crowd.users(backlog))
    sent_at = str(now).encode()
    posted: list[Event] = [(a.user_id, "track", a.message_id, sent_at, _encode(event(a, now))) for a in acts]
    await here.fill(Topic.RAW, records_by_partition(posted, SOURCE, "live", now, placing(here.shards)))
    partitions = range(here.shards)
    wanted = await here.reader.ends(here.topic(Topic.RAW), partitions)
    before = await here.reader.ends(here.topic(Topic.EVENTS), partitions)
    look_at = monotonic()

    async def decided() -> bool:
        """The ends say when it is worth to look; the last records say what was decided."""
        nonlocal look_at
        ends = await here.reader.ends(here.topic(Topic.EVENTS), partitions)
        if sum(ends.values()) - sum(before.values()) < backlog and monotonic() < look_at:
            return False
        look_at = monotonic() + _LOOK_SECONDS
        last = await here.reader.last(here.topic(Topic.EVENTS), partitions)
        done = {p: decode_decision(r.value).src for p, r in last.items() if r is not None and r.value is not None}
        return all(done.get(p, -1) >= end - 1 for p, end in wanted.items())

    return await here.timed(backlog, decided, "ingest", seconds=patience)
