"""Which brokers tests run on: the embedded one, Apache Kafka, or each in turn.

A broker is started once for the whole run; tests keep apart by a topic prefix of their own (`topics_of`). It outlives
every test's event loop, so it has one of its own.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.local import topics
from services.local.apache import ApacheKafka, missing_tools
from services.local.broker import EmbeddedBroker
from services.local.unprivileged import STATE_ROOT
from shared.contracts.identifiers import fresh_id
from shared.contracts.topics import Names
from tests.support.ports import free_port

MakeTopics = Callable[[str, int], Coroutine[Any, Any, Names]]


class Loop:
    """An event loop for servers that live longer than one test: their children's ends are awaited on it."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    def close(self) -> None:
        self._runner.close()


@pytest.fixture(scope="session")
def server_home() -> Iterator[Path]:
    """A folder for the servers of this run. Short: a Unix socket's path must fit."""
    path = Path(tempfile.mkdtemp(prefix="perennial-test-"))
    yield path
    for marker in path.rglob("servers.id"):  # as root the data lies outside the home
        for data in STATE_ROOT.glob(f"*-{marker.read_text().strip()}"):
            shutil.rmtree(data, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)


def serve(broker: EmbeddedBroker | ApacheKafka) -> Iterator[str]:
    loop = Loop()
    try:
        yield loop.run(broker.start())
    finally:
        loop.run(broker.stop())
        loop.close()


@pytest.fixture(scope="session")
def embedded_kafka(server_home: Path) -> Iterator[str]:
    """Address of an embedded broker."""
    home = server_home / "embedded"
    home.mkdir()
    yield from serve(EmbeddedBroker(home, free_port()))


@pytest.fixture(scope="session")
def apache_kafka(server_home: Path) -> Iterator[str]:
    """Address of an Apache Kafka; skips, and says why, where it cannot run."""
    problem = missing_tools()
    if problem is not None:
        pytest.skip(f"NOT TESTED ON APACHE KAFKA: {problem}")
    home = server_home / "apache"
    home.mkdir()
    yield from serve(ApacheKafka(home, free_port()))


@pytest.fixture(params=["embedded", pytest.param("apache", marks=pytest.mark.kafka)])
def kafka(request: pytest.FixtureRequest) -> str:
    """Address of a broker; a test that asks for it runs once on each kind."""
    address: str = request.getfixturevalue(f"{request.param}_kafka")
    return address


@pytest.fixture
def topics_of() -> MakeTopics:
    """`await topics_of(address, shards)` makes a set of topics of this test's own, and returns their names."""

    async def make(address: str, shards: int) -> Names:
        names = Names(f"{fresh_id('t')[:9]}.")
        await topics.ensure_topics(address, names, shards)
        return names

    return make
