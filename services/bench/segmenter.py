"""How fast the segmenter folds a backlog of decisions, durably and published, beside a bare durable loop.

Everything is on: groups, epochs, rules, repeats, counts, cohorts, ledger, time and its sweep.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from services.bench.figures import Figure, Round, throughput
from services.bench.gateway import memory
from services.bench.plan import Plan, alternately
from services.bench.site import Servers, Site, site
from services.bench.traffic import CITIES, Crowd, decisions
from services.ingest.domain.places import locate
from shared.contracts.events import TimeRecord, encode
from shared.contracts.topics import Topic
from shared.gazetteer import load as load_gazetteer
from shared.kafka.sender import Record
from shared.process.clock import Clock

_TARGET = 90_000
_BACKLOG = 45_000
"""For each second of a round: it lasts longer where less is reached, and is to be over in time all the same."""
_LEAST_OF_CEILING_PERCENT = 60.0
_OPEN = """
SELECT count(*) FROM unnest($1::int[], $2::bigint[]) AS w(shard, src)
LEFT JOIN spine.shard_position p ON p.service = 'segmenter' AND p.shard = w.shard
WHERE coalesce(p.last_src, -1) < w.src
"""


@dataclass
class Decided:
    """What ingest would have decided so far: it goes on from round to round."""

    crowd: Crowd
    rules: int
    city_ids: list[int]
    last: dict[int, int] = field(default_factory=dict)

    async def more(self, here: Site, users: list[str]) -> int:
        """One act of each of these users, and the time in each partition; the number of records written."""
        now = Clock().real_ms()
        found = decisions(self.crowd.acts(users), self.city_ids, now, self.rules, here.shard_of, self.last)
        records = {
            shard: [Record(event.user_id.encode(), encode(event)) for event in several]
            for shard, several in found.items()
        }
        for shard, several in records.items():
            several.append(Record(b"", encode(TimeRecord(self.last[shard], b"\x00" * 8, self.rules, now))))
        await here.fill(Topic.EVENTS, records)
        return sum(map(len, records.values()))


async def measure(servers: Servers, plan: Plan) -> list[Figure]:
    async with site(servers, ["segmenter"]) as here:
        here.freeze("segmenter")
        setup = {
            "kafka": servers.address, "source": here.topic(Topic.EVENTS),
            "target": await here.make_topic("bench.folded"), "partitions": here.shards,
            "postgres": here.installation.dsn,
        }  # fmt: skip
        await here.helper("bare segmenter", "ceilings.segmenter", setup)
        gazetteer, crowd = load_gazetteer(), Crowd(plan.users, plan.spread)
        version = await here.database.fetchval("SELECT max(version) FROM control.rules")
        city_ids = [city for name in CITIES if isinstance(city := locate({"city": name}, gazetteer), int)]
        decided, backlog, written = Decided(crowd, version, city_ids), plan.backlog(_BACKLOG), 0

        async def product() -> Round:
            nonlocal written
            written = await decided.more(here, crowd.users(backlog))
            return await here.timed(backlog, lambda: _applied(here, decided), "segmenter", seconds=plan.patience)

        async def ceiling() -> Round:
            one = await here.asked("bare segmenter", {"events": written})
            return Round(backlog, one.seconds, one.cpu)

        # both begin with everyone new
        (cold,), (cold_ceiling,) = await alternately(1, product, ceiling)
        rounds = await alternately(plan.rounds, product, ceiling)
        note = f"{plan.spread} over {plan.users:,} users, in 1/(n+1) of the rounds new; durable and published"
        folded = throughput("segmenter", "segmenter, decided → applied", *rounds, target=_TARGET, note=note)
        first = throughput("segmenter_new", "segmenter, the first round: most users are new", [cold], [cold_ceiling])
        share = Figure(
            "segmenter_share", "segmenter, share of the bare durable loop", "%", 100 * (folded.ratio or 0.0),
            target=_LEAST_OF_CEILING_PERCENT,
        )  # fmt: skip
        return [folded, share, first, memory(here, "segmenter")]


async def _applied(here: Site, decided: Decided) -> bool:
    """Committed, and what follows from it acknowledged by the broker."""
    shards = list(decided.last)
    if await here.database.fetchval(_OPEN, shards, [decided.last[shard] for shard in shards]):
        return False
    return not await here.metric("segmenter", "perennial_relay_pending_rows")
