"""How the notifier is put together: opened in order of need, closed in reverse.

The dispatcher stops before the relay its outcomes are published by, the reader before the dispatcher it
hands intents to; a push on the wire at the end is found as an attempt by the next owner.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path

from services.notifier.api import make_app
from services.notifier.book import CampaignBook
from services.notifier.context.handler import ContextHandler
from services.notifier.dispatch import Dispatcher
from services.notifier.messages import OutcomeRow
from services.notifier.pipeline import Notifier
from services.notifier.publish import Publisher
from services.notifier.runs import Runs
from services.notifier.scheduler import Scheduler
from services.notifier.settings import Settings
from services.notifier.transports.fcm import FcmTransport
from services.notifier.transports.none import NoTransport
from services.notifier.transports.oauth import read_service_account
from services.notifier.transports.push import Transport
from shared.contracts.topics import Names, Topic
from shared.data.control import RulesBook
from shared.gazetteer import load as load_gazetteer
from shared.kafka.log_reader import LogReader
from shared.kafka.owning import Readers, noting, opened_database, require_partitions
from shared.kafka.relay import Relay
from shared.kafka.sender import Sender
from shared.process.clock import Clock
from shared.process.compose import opened, patiently
from shared.process.http import Health, serve
from shared.process.logs import configure
from shared.process.settings import Installation, load
from shared.process.supervisor import Supervisor

log = logging.getLogger("perennial.notifier")


async def run() -> int:
    env, settings = load(Installation), load(Settings)
    configure("notifier", env.log_level)
    names, clock, health = Names(env.prefix), Clock(env.clock), Health()
    async with AsyncExitStack() as stack:
        supervisor = Supervisor(stack)
        pool = await opened_database(stack, env, clock, size=8, service="notifier")
        gazetteer = load_gazetteer()
        book = CampaignBook(pool, RulesBook(Path(env.home) / "last-good" / "notifier-rules.json"))
        await patiently(book.refresh)
        sender = await opened(stack, Sender(env.kafka))
        log_reader = await opened(stack, LogReader(env.kafka))
        await require_partitions(log_reader, env, Topic.FEED, Topic.CONTEXT)
        app = make_app(
            pool=pool,
            book=book,
            gazetteer=gazetteer,
            sender=sender,
            context_topic=names.topic(Topic.CONTEXT),
            clock=clock,
            shards=env.shards,
            health=health,
        )
        supervisor.add("http", serve(app, env.bind, settings.port))

        relay: Relay[OutcomeRow] = Relay("notifier", sender, Publisher(names).row, noting(pool, "notifier"))
        stack.push_async_callback(relay.stop)
        transport = _transport(settings, clock)
        stack.push_async_callback(transport.close)
        dispatcher = Dispatcher(
            pool=pool, book=book, transport=transport, relay=relay, clock=clock, most=settings.concurrent_sends
        )
        runs = Runs(pool, gazetteer)
        notifier = Notifier(
            pool=pool,
            book=book,
            relay=relay,
            dispatcher=dispatcher,
            runs=runs,
            clock=clock,
            gazetteer=gazetteer,
            most_cached=settings.cached_recipients,
        )
        scheduler = Scheduler(book, gazetteer, clock, env.shards, runs.poke)
        context = ContextHandler(book, gazetteer, clock, env.shards, runs.poke, scheduler)

        readers = Readers(
            stack, env, log_reader, pool, health, session_seconds=settings.session_seconds,
            batch_records=settings.batch_records,
        )  # fmt: skip
        # at once: a broker may let each group wait for seconds before it begins
        notifier.reader, context.reader = await asyncio.gather(
            readers.opened("notifier", Topic.FEED, notifier),
            readers.opened("context", Topic.CONTEXT, context, fetch_every_ms=100),
        )
        dispatcher.reader, dispatcher.recipient = notifier.reader, notifier.recipient
        scheduler.reader = context.reader
        stack.push_async_callback(dispatcher.finish)
        supervisor.add("relay", relay.run())
        supervisor.add("settle", dispatcher.settle())
        supervisor.add("dispatch", dispatcher.run())
        supervisor.add("definitions", book.run())
        supervisor.add("pipeline", notifier.reader.run())
        supervisor.add("context", context.reader.run())
        supervisor.add("schedules", scheduler.run())
        return await supervisor.run()


def _transport(settings: Settings, clock: Clock) -> Transport:
    if not settings.fcm_account_file:
        log.warning("PERENNIAL_NOTIFIER_FCM_ACCOUNT_FILE is not set: messages wait, nothing is sent")
        return NoTransport()
    account = read_service_account(Path(settings.fcm_account_file))
    return FcmTransport(account, clock.real_ms, settings.fcm_url)
