"""`perennial demo`: everything on this machine, with people who use it, real weather, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import typer

from services.demo import closing, drive, forecasts, phones, report, weather
from services.demo.drive import Gateway, Inbox, Phones
from services.demo.past import Past
from services.demo.progress import Progress
from services.demo.watch import Watch, until, watching
from services.local.program import LocalError
from services.local.up import Installation, Options, running
from services.packs import PackError, load_pack
from shared.contracts.identifiers import fresh_id
from shared.gazetteer import load as load_gazetteer
from shared.process.clock import Clock, monotonic
from shared.process.errors import Fatal, Transient

SETTLE_SECONDS = 180.0
TRICKLE_RATE = 2.0
TRICKLE_EVENTS = 40


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the command line asked for, besides the installation."""

    once: bool
    json_file: Path | None
    seed: int
    phones: int
    rate: float
    seconds: float


async def run(
    *,
    options: Options,
    once: bool,
    json_file: Path | None,
    seed: int,
    phones: int,
    rate: float,
    seconds: float,
) -> int:
    """The whole demo; exit code 1 when something was still on its way at the end of `--once`."""
    wishes = Wishes(once, json_file, seed, phones, rate, seconds)
    began = monotonic()
    progress = Progress()
    # the same users are held out each time, so that the same seed gives the same counts
    options = dataclasses.replace(options, salt=f"demo-{seed}")
    try:
        async with (
            running(options, progress.say) as installation,
            demonstrating(installation, wishes, progress, began) as demo,
        ):
            found = await demo.play()
            demo.tell(found)
            if not once:
                await demo.go_on()
            return 0 if found["ok"] else 1
    finally:
        progress.rest()
        progress.say("stopped")


class Demo:
    """One demonstration on a running installation."""

    def __init__(
        self,
        installation: Installation,
        wishes: Wishes,
        progress: Progress,
        began: float,
        watch: Watch,
        users: Phones,
        inbox: Inbox,
        past: Past,
    ) -> None:
        self._installation, self._wishes, self._progress, self._began = installation, wishes, progress, began
        self._watch, self._phones, self._inbox, self._past = watch, users, inbox, past
        self._shop = is_shop(installation.options)
        self._clock = Clock()
        self._since_ms = self._clock.now_ms()
        self._setup = monotonic() - began
        self._doing = ""

    async def play(self) -> dict[str, Any]:
        """People set up their phones, the weather comes, people use the app; then everything comes to rest."""
        ticker = asyncio.create_task(self._tick(), name="progress")
        try:
            self._doing = "phones set up their cities"
            await self._inbox.bury(person.token for person in self._phones.everyone if person.deleted and person.token)
            await self._phones.set_up(with_history=not self._past.known)
            if self._shop and not self._past.known:
                self._doing = "the shop's orders of earlier years are imported"
                await self._phones.remember()
            # the feed must find the cities that were set before it came
            arrived = await until(self._watch.applied, SETTLE_SECONDS)
            if await self._wants_alerts():
                self._doing = "the weather feed comes, people look at the app"
                await self._watch.tell("notifier", "/v1/context", self._feed())
            else:
                self._doing = "people use the app"
            await self._phones.come_back()
            await self._phones.use(self._wishes.rate, round(self._wishes.rate * self._wishes.seconds))
            self._doing = "everything comes to rest"
            settled = await until(self._at_rest, SETTLE_SECONDS)
            # only once nothing is under way to them, or it would depend on the moment whether it arrives
            await self._inbox.bury(await self._phones.leave())
            settled = await until(self._at_rest, SETTLE_SECONDS) and settled
        finally:
            ticker.cancel()
            self._progress.rest()
        seconds = {
            "setup": round(self._setup, 2),
            "first_push": None if self._inbox.first_after is None else round(self._inbox.first_after, 2),
            "total": round(monotonic() - self._began, 2),
        }
        stages = [stage.id for pack in self._installation.options.packs for stage in load_pack(pack).stages]
        return await report.summary(self._watch, seconds, self._since_ms, arrived and settled, stages)

    async def _wants_alerts(self) -> bool:
        """Whether a campaign of the pack waits for the weather."""
        campaigns = (await self._watch.ask("notifier", "/v1/campaigns"))["items"]
        return any(campaign["trigger"]["type"] == "alert" for campaign in campaigns)

    def _feed(self) -> bytes:
        return msgspec.json.encode(weather.feed(self._clock.now_ms(), self._past.run))

    async def _at_rest(self) -> bool:
        """A tap makes events, events make pushes, pushes make taps: all of it has to be still at one moment."""
        return (
            await self._inbox.quiet()
            and await self._watch.applied()
            and await self._watch.sent()
            and await self._inbox.quiet()
            and await self._watch.applied()
        )

    async def _tick(self) -> None:
        """The moving display."""
        while True:
            # a service may be starting again
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ConnectionError, Transient):
                self._progress.now(self._doing, await report.figures(self._watch, self._since_ms))
            await asyncio.sleep(1.0)

    def tell(self, found: dict[str, Any]) -> None:
        """Says what happened, and writes the summary where it was asked for."""
        file = self._wishes.json_file
        aside = file is not None and str(file) == "-"
        for line in (*closing.lines(found), "", *self._where()):
            typer.echo(line, err=aside)
        if file is not None:
            text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
            if aside:
                sys.stdout.write(text)
                sys.stdout.flush()
            else:
                file.write_text(text)

    def _where(self) -> list[str]:
        here = closing.as_typed(sys.argv[0], self._installation.home.path, Path.cwd())
        return list(
            closing.where(
                self._installation.status,
                here,
                fresh_id()[:6],
                someone=self._inbox.someone(),
                shop=self._shop,
                once=self._wishes.once,
            )
        )

    async def go_on(self) -> None:
        """A gentle trickle until the end; says what arrives. It begins with a morning, whatever the hour."""
        self._progress.say(f"people go on using the app; pushes are shown at {self._installation.url('sandbox')}/")
        self._progress.say("Ctrl-C stops everything")
        said = await forecasts.good_morning(
            self._watch, self._phones.everyone, self._wishes.seed, self._clock.now_ms(), SETTLE_SECONDS
        )
        if said:
            self._progress.say(said)
        self._inbox.on_push = lambda push: self._progress.say(f"push to {push['token']}: {push['title']}")
        while True:
            await self._phones.use(TRICKLE_RATE, TRICKLE_EVENTS)
            await asyncio.sleep(0)


def is_shop(options: Options) -> bool:
    """Whether the pack demonstrated counts orders."""
    # a pack that does not load is complained of where it is put in force
    with contextlib.suppress(PackError):
        return any("order" in load_pack(pack).signals for pack in options.packs)
    return False


@asynccontextmanager
async def demonstrating(
    installation: Installation, wishes: Wishes, progress: Progress, began: float
) -> AsyncIterator[Demo]:
    """Everything a demonstration needs, opened; a failure of the inbox ends it."""
    past = Past.next(installation.home.path / "demo.json", wishes.seed)
    options = installation.options
    everyone = phones.people(wishes.seed, wishes.phones, load_gazetteer(), past.run)
    async with drive.session() as http, watching(installation, http) as watch:
        gateway = Gateway(http, installation.url("gateway"), installation.keys.write)
        users = Phones(gateway, Clock(), everyone, wishes.seed, past.run, shop=is_shop(options))
        inbox = Inbox(http, installation.url("sandbox"), users, wishes.seed, began)
        progress.say(f"{len(everyone):,} phones")
        try:
            async with asyncio.TaskGroup() as group:
                looking = group.create_task(inbox.run(), name="inbox")
                try:
                    yield Demo(installation, wishes, progress, began, watch, users, inbox, past)
                finally:
                    looking.cancel()
        except* (LocalError, Transient, Fatal, aiohttp.ClientError) as failures:
            raise failures.exceptions[0] from None
