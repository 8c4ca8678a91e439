"""How many events a second one gateway process acknowledges, by the shape of the posts, beside a bare gateway."""

from __future__ import annotations

import statistics
from typing import Any

from services.bench.figures import Figure, Round, throughput
from services.bench.plan import Plan, alternately
from services.bench.site import BARE_GATEWAY_OFFSET, Servers, Site, site
from services.bench.traffic import Shape
from services.local.program import LocalError

_SHAPES: tuple[tuple[str, str, Shape, int, int], ...] = (
    ("gateway_phones_100", "batches of 100, one user each", "phones", 100, 120_000),
    ("gateway_mixed_100", "batches of 100 mixed users", "mixed", 100, 70_000),
    ("gateway_phones_20", "batches of 20, one user each", "phones", 20, 60_000),
    ("gateway_singles", "single events", "singles", 1, 8_000),
)
_PREPARED_EVENTS = 60_000
_MOST_LATE_MS = 50.0
_CONNECTIONS = 32


async def measure(servers: Servers, plan: Plan) -> list[Figure]:
    async with site(servers, ["gateway"]) as here:
        port = servers.port + BARE_GATEWAY_OFFSET
        setup = {"kafka": servers.address, "topic": await here.make_topic("bench.posted"), "partitions": here.shards}
        await here.helper("bare gateway", "ceilings.gateway", {**setup, "port": port})
        await here.helper("load", "load", {"port": servers.port, "headers": here.headers})
        figures = []
        for name, what, shape, size, target in _SHAPES:
            posts = {
                "shape": shape, "size": size, "many": max(_CONNECTIONS, _PREPARED_EVENTS // size), "seed": 1,
                "users": plan.users, "spread": plan.spread, "tag": "u",
            }  # fmt: skip
            asked: dict[str, Any] = {"posts": posts, "seconds": plan.seconds, "connections": _CONNECTIONS}
            await here.ask("load", {**asked, "seconds": plan.seconds / 4})

            async def product(asked: dict[str, Any] = asked) -> Round:
                return _answered(await here.asked("load", asked))

            async def ceiling(asked: dict[str, Any] = asked) -> Round:
                here.thaw("bare gateway")
                try:
                    return _answered(await here.asked("load", {**asked, "port": port}))
                finally:
                    here.freeze("bare gateway")

            await ceiling()
            rounds = await alternately(plan.rounds, product, ceiling)
            figures.append(throughput(name, f"gateway, {what}", *rounds, target=target))
            if name == "gateway_phones_100":
                figures.append(await _half_load(here, plan, asked, figures[0]))
        figures.append(memory(here, "gateway"))
        return figures


async def _half_load(here: Site, plan: Plan, asked: dict[str, Any], full: Figure) -> Figure:
    """Latency where half as much is offered as the gateway takes."""
    rate = full.value / asked["posts"]["size"] / 2
    rounds = [_answered(await here.asked("load", {**asked, "rate": rate})) for _ in range(plan.rounds)]
    late = [one.p99_ms for one in rounds if one.p99_ms is not None]
    usual = [one.p50_ms for one in rounds if one.p50_ms is not None]
    return Figure(
        "gateway_latency", "gateway, p99 of such a batch at half that load", "ms", statistics.median(late),
        target=_MOST_LATE_MS, at_most=True, p50_ms=statistics.median(usual), p99_ms=statistics.median(late),
        values=late,
    )  # fmt: skip


def _answered(one: Round) -> Round:
    if not one.events:
        raise LocalError("the gateway took nothing of the bench's posts; see its log")
    return one


def memory(here: Site, service: str, most: float = 300.0) -> Figure:
    """What a service holds in memory after its rounds."""
    held = here.resident_mb(service) or 0.0
    return Figure(f"{service}_memory", f"{service}, memory", "MB", held, target=most, at_most=True, values=[held])
