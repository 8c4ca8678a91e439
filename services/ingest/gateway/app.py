"""What the gateway consists of, in the order it is opened; it is closed in reverse.

HTTP comes last and goes first, so that what was accepted is still sent; the collector is drained before
the producer stops.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import AsyncExitStack
from pathlib import Path

from services.ingest.gateway.api import make_api
from services.ingest.gateway.broker import Broker, Outlet
from services.ingest.gateway.budget import Budget
from services.ingest.gateway.collector import Collector, Outcome
from services.ingest.gateway.connections import connections
from services.ingest.gateway.keys import KeyBook
from services.ingest.gateway.keys_feed import KeysFeed
from services.ingest.gateway.records import RECORD_OVERHEAD_BYTES, placing
from services.ingest.gateway.settings import GatewaySettings
from services.ingest.gateway.tracking import Tracking
from services.ingest.privacy.api import privacy
from services.ingest.privacy.requests import Send
from shared.contracts.topics import Names, Topic
from shared.data.db import Pool, connect_pool
from shared.kafka.sender import Record, SendFailed
from shared.process import logs
from shared.process.clock import Clock
from shared.process.http import Health, serve
from shared.process.settings import Installation, load
from shared.process.supervisor import Supervisor

_HEADERS_SECONDS = 5.0


def make_app(
    keys: KeyBook,
    outlet: Outlet,
    health: Health,
    clock: Clock,
    shards: int,
    settings: GatewaySettings,
    admin: Pool | None = None,
) -> tuple[Tracking, Collector]:
    """The HTTP side, on any keys and any broker; with a database, users can be erased as well."""
    budget = Budget(settings.in_flight_bytes)
    collector = Collector(outlet, shards, budget, settings.deadline_seconds, health)
    api = make_api(keys, health)
    if admin is not None:
        api.include_router(privacy(admin, asking(collector, outlet, budget), clock, shards))
    place = placing(shards)
    return Tracking(api, keys, collector, outlet, budget, place, clock, settings.body_seconds), collector


def asking(collector: Collector, outlet: Outlet, budget: Budget) -> Send:
    """How a request about a user gets into raw: among the user's events, behind those acknowledged before."""

    async def send(shard: int, record: Record) -> None:
        need = len(record.value) + RECORD_OVERHEAD_BYTES
        if outlet.away or collector.closing or not budget.take(need):
            raise SendFailed("this gateway cannot write to the broker now")
        if await collector.post({shard: [record]}, need) is not Outcome.ACKNOWLEDGED:
            raise SendFailed("the broker did not acknowledge the request")

    return send


async def tell_readiness(keys: KeyBook, outlet: Outlet, health: Health) -> None:
    """Ready means: posts are taken. Both reasons come and go while the process lives."""
    while True:
        health.not_ready = outlet.away or ("" if keys.known else "the write keys are not known yet")
        await asyncio.sleep(0.1)


async def run() -> int:
    installation, settings = load(Installation), load(GatewaySettings)
    logs.configure("gateway", installation.log_level)
    # Without a broker these two say so twenty times a second; `broker` says it once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    logging.getLogger("aiokafka.producer.sender").setLevel(logging.ERROR)
    health, keys, clock = Health(), KeyBook(), Clock(installation.clock)
    stack = AsyncExitStack()
    feed = KeysFeed(keys, installation.postgres, Path(installation.home) / "gateway" / "keys.json", settings, health)
    stack.push_async_callback(feed.stop)
    feed.load_kept()
    broker = Broker(
        installation.kafka,
        Names(installation.prefix).topic(Topic.RAW),
        installation.shards,
        health,
        timeout_ms=int(settings.deadline_seconds * 1000),
        probe_seconds=settings.probe_seconds,
    )
    stack.push_async_callback(broker.stop)
    # it takes events without Postgres, also when it starts
    admin = await connect_pool(installation.postgres, size=2, at_once=False)
    stack.callback(admin.terminate)
    app, collector = make_app(keys, broker, health, clock, installation.shards, settings, admin)
    stack.push_async_callback(collector.drain)
    supervisor = Supervisor(stack)
    supervisor.add("keys", feed.run())
    supervisor.add("broker", broker.run())
    supervisor.add("collector", collector.run())
    supervisor.add("readiness", tell_readiness(keys, broker, health))
    # Requests leave no cycles behind, and a full collection would stall every open one.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    supervisor.add(
        "http",
        serve(
            app,
            installation.bind,
            settings.port,
            http=connections(settings.body_seconds + _HEADERS_SECONDS),
            ws="none",
            proxy_headers=False,  # nothing here looks at the client's address
            timeout_keep_alive=30,
            backlog=4096,
        ),
    )
    return await supervisor.run()
