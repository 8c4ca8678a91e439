"""Each alert provoked on a real installation, seen firing in a real Prometheus, mended, and seen to end. The one that
needs Apache Kafka, for its transactions, is in test_transactions.py.

The rules are the shipped ones, `hastened`: their times are divided by `TIMES`, no count or share is changed. With
PERENNIAL_TEST_ALERTS_TIMES=1 they are as shipped, and it takes long.
"""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from shared.contracts.events import Rejected, encode
from shared.contracts.topics import Topic
from shared.kafka.sender import Record, Sender
from tests.support import prometheus
from tests.support.installation import Rig, eventually, installed
from tests.support.prometheus import JOBS, Prometheus
from tests.support.traffic import Storms, Traffic

TIMES = int(os.environ.get("PERENNIAL_TEST_ALERTS_TIMES", "20"))
PATIENCE_SECONDS = 40 + 1800 / TIMES
POISON = "Poisoned Event"
BORN = 'process_start_time_seconds{job="ingest"}'

pytestmark = [pytest.mark.long, pytest.mark.asyncio(loop_scope="module")]
long_enough = pytest.mark.timeout(240 + 4 * PATIENCE_SECONDS)


class Scene:
    """An installation under load, watched. `fires` and `ends` tell after how many seconds."""

    def __init__(self, rig: Rig, watching: Prometheus, http: aiohttp.ClientSession) -> None:
        self.rig, self.watching, self._http = rig, watching, http
        self._numbers, self._storms = count(), Storms(4702)

    async def found(self, alert: str, **labels: str) -> bool:
        firing = (await self.watching.firing(hastened=True)).get(alert, [])
        return any(labels.items() <= one.items() for one in firing)

    async def fires(self, alert: str, **labels: str) -> None:
        await self._told(f"{alert} {labels} fires", alert, labels, wanted=True)

    async def ends(self, alert: str, **labels: str) -> None:
        await self._told(f"{alert} {labels} has ended", alert, labels, wanted=False)

    async def _told(self, what: str, alert: str, labels: dict[str, str], *, wanted: bool) -> None:
        began = time.monotonic()

        async def otherwise() -> str:
            if await self.found(alert, **labels) is wanted:
                return ""
            return f"not so: {what}; {await self.watching.firing(hastened=True)}"

        await eventually(otherwise, PATIENCE_SECONDS, every=0.5)
        print(f"{what} after {time.monotonic() - began:.0f} s")

    async def knock(self, events: Iterable[dict[str, Any]]) -> int:
        """One post, whatever becomes of it: its status, 0 where nobody answered."""
        key = base64.b64encode(f"{self.rig.status['write_key']}:".encode()).decode()
        headers = {"Authorization": f"Basic {key}"}
        url = f"{self.rig.status['gateway']}/v1/batch"
        try:
            async with self._http.post(url, json={"batch": list(events)}, headers=headers) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError):
            return 0

    async def ask(self, method: str, service: str, path: str, **options: Any) -> None:
        headers = {"Authorization": f"Bearer {self.rig.status['admin_key']}"}
        async with self._http.request(method, self.rig.status[service] + path, headers=headers, **options) as answer:
            assert answer.status < 300, await answer.text()

    async def storm(self) -> None:
        """A weather alert for cities of the traffic's users, who get a push each."""
        await self.rig.alert(self._storms.alert(time.time()))

    def event(self, named: str, /, **properties: str) -> dict[str, Any]:
        number = next(self._numbers)
        return {"type": "track", "event": named, "userId": f"alerts-{number}", "messageId": f"alerts-{number}",
                "properties": properties}  # fmt: skip


@asynccontextmanager
async def going_on(work: Callable[[], Awaitable[object]], every: float = 0.1, beside: int = 1) -> AsyncIterator[None]:
    """`work` again and again while the block runs."""

    async def again() -> None:
        while True:
            await work()
            await asyncio.sleep(every * beside)

    tasks = [asyncio.create_task(again()) for _ in range(beside)]
    try:
        yield
        for task in tasks:
            assert not task.done(), task.exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    prometheus.tool("prometheus")
    home: Path = tmp_path_factory.mktemp("alerts")
    async with AsyncExitStack() as stack:
        rig = await stack.enter_async_context(installed(home / "home", env={"PERENNIAL_SEGMENTER_FAULT": POISON}))
        targets = {job: rig.status[job] for job in JOBS}
        watching = await stack.enter_async_context(prometheus.running(home / "watching", targets, TIMES))

        async def unseen() -> str:
            found = await watching.value("sum(perennial_working)")
            return "" if found == len(JOBS) else f"Prometheus has seen {found:g} services at work"

        # what was counted before it looked first is no increase to it
        await eventually(unseen, PATIENCE_SECONDS)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15)))
        yield Scene(rig, watching, http)


@pytest_asyncio.fixture(loop_scope="module")
async def scene(installation: Scene) -> AsyncIterator[Scene]:
    """People use the app all the while, and nothing fires when a test begins."""
    traffic = Traffic(4701, users=80)

    async def use() -> None:
        await installation.knock([traffic.event(time.time()) for _ in range(3)])

    async with going_on(use, beside=4):

        async def fires() -> str:
            found = await installation.watching.firing(hastened=True)
            return f"fires before anything was done: {found}" if found else ""

        await eventually(fires, PATIENCE_SECONDS, every=0.5)
        yield installation
        installation.rig.thaw()


@long_enough
async def test_a_service_that_is_not_there(scene: Scene) -> None:
    await scene.rig.without("notifier")
    await scene.fires("PerennialServiceDown", job="notifier", what="does not answer")
    await scene.rig.back("notifier")
    await scene.ends("PerennialServiceDown")


@long_enough
async def test_a_frozen_service_and_time_that_stands_for_it(scene: Scene) -> None:
    """It is there, and its sockets are open; only it does nothing."""
    ingest = scene.rig.pid("ingest")
    scene.rig.stop(ingest)
    await scene.fires("PerennialServiceDown", job="ingest", what="does not answer")
    await scene.fires("PerennialTimeStands", job="segmenter")
    await scene.fires("PerennialTimeStands", job="notifier")
    scene.rig.cont(ingest)
    await scene.ends("PerennialTimeStands")
    await scene.ends("PerennialServiceDown")


@long_enough
async def test_a_broker_that_answers_nobody(scene: Scene) -> None:
    """Posts are refused, time stands, and what was committed waits. Pushes that were stopped go out meanwhile, so that
    there is something to publish."""
    await scene.ask("POST", "notifier", "/v1/kill")
    async with going_on(scene.storm, every=0.3):

        async def nothing() -> str:
            url = scene.rig.status["notifier"]
            waiting = await scene.rig.metric(url, "perennial_notifier_waiting_messages")
            return "" if waiting else "no message waits"

        await eventually(nothing, 30)
    broker = scene.rig.pid("kafka")
    scene.rig.stop(broker)
    await scene.ask("DELETE", "notifier", "/v1/kill")
    await scene.fires("PerennialServiceDown", job="gateway", what="answers, and does not work")
    await scene.fires("PerennialTimeStands", job="segmenter")
    await scene.fires("PerennialTimeStands", job="notifier")
    await scene.fires("PerennialEventsRefused", job="gateway")
    await scene.fires("PerennialRelayBacklog", service="notifier")
    scene.rig.cont(broker)
    for alert in ("RelayBacklog", "TimeStands", "EventsRefused", "ServiceDown"):
        await scene.ends(f"Perennial{alert}")


@long_enough
async def test_events_that_nobody_can_use(scene: Scene) -> None:
    """A release of the app that posts personal data: taken by the gateway, rejected by ingest."""

    async def faulty() -> None:
        assert await scene.knock([scene.event("Screen Viewed", name="someone@example.org") for _ in range(10)]) == 200

    async with going_on(faulty):
        await scene.fires("PerennialEventsRefused", job="ingest")
    await scene.ends("PerennialEventsRefused")


@long_enough
async def test_a_bug_and_a_missing_record(scene: Scene) -> None:
    """One event that makes the code fail, then one decision that tells of another before it, which is not in the log."""
    assert await scene.knock([scene.event(POISON)]) == 200
    await scene.fires("PerennialRecordsAtRisk", what="bug", service="segmenter")
    sender = Sender(scene.rig.status["kafka"])
    await sender.start()
    try:
        far = Rejected(10**9, 10**9 - 1, b"", 1, "alerts-gap", "alerts-gap", "malformed_json", 0, "")
        await sender.send(scene.rig.status["prefix"] + Topic.EVENTS.value, 0, [Record(b"alerts-gap", encode(far))])
    finally:
        await sender.stop()
    await scene.fires("PerennialRecordsAtRisk", what="gap", service="segmenter")
    await scene.ends("PerennialRecordsAtRisk")


@long_enough
async def test_a_provider_that_takes_nothing(scene: Scene) -> None:
    async with going_on(scene.storm, every=0.3):
        await scene.ask("PUT", "sandbox", "/behaviour", json={"provider": "fcm", "mode": "503"})
        await scene.fires("PerennialPushesFail", job="notifier")
        await scene.ask("PUT", "sandbox", "/behaviour", json={"provider": "fcm", "mode": "ok"})
        await scene.ends("PerennialPushesFail")


@long_enough
async def test_a_process_that_ends_again_and_again(scene: Scene) -> None:
    """It answers between its ends, and is never away for long."""

    async def end() -> None:
        pid, born = scene.rig.pid("ingest"), await scene.watching.value(BORN)
        scene.rig.kill("ingest")
        await scene.rig.gone("ingest", pid)

        async def unseen() -> str:
            return "" if await scene.watching.value(BORN) > born else "Prometheus has not seen the next process"

        await eventually(unseen, 40)

    async with going_on(end):
        await scene.fires("PerennialServiceDown", job="ingest", what="ends again and again")
    await scene.ends("PerennialServiceDown")
