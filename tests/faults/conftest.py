"""Every test here breaks something in a real installation; one installation per broker serves all of them.

An installation in which the oracle found a difference is not used again: the next test begins with a new one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from services.local.apache import missing_tools
from tests.support.installation import Rig, installed
from tests.support.sdks.using import node

__all__ = ["node"]

HERE = Path(__file__).parent
APACHE = pytest.param("apache", marks=pytest.mark.kafka)
BROKERS = ["embedded", APACHE]
TWICE = {
    "test_crashes.py",
    "test_erasing.py",
    "test_input.py",
    "test_replaced_log.py",
    "test_sdks.py",
    "test_takeover.py",
}
"""What every run does on the embedded broker; `make faults` does it on Apache Kafka, too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.faults)
            item.add_marker(pytest.mark.timeout(240))
            if item.path.name in TWICE and "apache" in item.name:
                item.add_marker(pytest.mark.long)


class Keeper:
    """The installation in use, and the broker it runs on."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._kind = ""
        self._rig: Rig | None = None

    async def rig(self, kind: str) -> Rig:
        if self._rig is None or self._rig.spoiled or self._kind != kind:
            await self.close()
            home = Path(tempfile.mkdtemp(prefix="perennial-faults-"))
            self._stack.callback(shutil.rmtree, home, ignore_errors=True)
            self._rig, self._kind = await self._stack.enter_async_context(installed(home, kafka=kind)), kind
        return self._rig

    async def close(self) -> None:
        self._rig = None
        await self._stack.aclose()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def keeper() -> AsyncIterator[Keeper]:
    one = Keeper()
    yield one
    await one.close()


@pytest.fixture(scope="session", params=BROKERS)
def broker(request: pytest.FixtureRequest) -> str:
    """Each kind of broker in turn; all tests on one kind come before those on the other."""
    kind: str = request.param
    problem = missing_tools() if kind == "apache" else None
    if problem is not None:
        pytest.skip(f"NOT TESTED ON APACHE KAFKA: {problem}")
    return kind


@pytest_asyncio.fixture(loop_scope="session")
async def rig(keeper: Keeper, broker: str) -> AsyncIterator[Rig]:
    """A running installation that was equal to the oracle when last looked at."""
    one = await keeper.rig(broker)
    one.spoiled = True  # until the test has shown otherwise
    yield one
    one.thaw()
    await one.end_extra()
