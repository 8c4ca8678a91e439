"""The gateway does what its OpenAPI document says, and nothing it does not say: schemathesis, all checks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode

from services.ingest.gateway.app import make_app
from services.ingest.gateway.keys import KeyBook
from services.ingest.gateway.settings import GatewaySettings
from shared.process.clock import Clock
from shared.process.http import Health, serve
from tests.component.test_gateway import KEY, SHARDS, FakeOutlet
from tests.support.ports import free_port

CONFIG = {
    # a query may have parameters nobody knows: tracking calls go through links and proxies that add theirs
    "generation": {"allow-extra-parameters": False},
    "checks": {"negative_data_rejection": {"expected-statuses": ["400", "401", "404", "405", "413", "422"]}},
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A gateway on a broker that takes everything, in a thread of its own."""
    port, started, ended = free_port(), threading.Event(), threading.Event()

    async def serving() -> None:
        health = Health()
        health.ready()
        app, collector = make_app(KeyBook.of(app="demo"), FakeOutlet(), health, Clock(), SHARDS, GatewaySettings())
        tasks = [asyncio.create_task(work) for work in (collector.run(), serve(app, "127.0.0.1", port, ws="none"))]
        while not ended.is_set():
            await asyncio.sleep(0.05)
            if not started.is_set():
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    continue
                writer.close()
                started.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(serving()))
    thread.start()
    assert started.wait(10)
    yield f"http://127.0.0.1:{port}"
    ended.set()
    thread.join(20)


def conform(url: str, examples: int) -> int:
    """Every operation with data that fit its schema and with data that do not; how many requests that were."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=schemathesis.Config.from_dict(CONFIG))
    asked = 0
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        for mode in GenerationMode:

            @hypothesis.settings(
                max_examples=examples, deadline=None, database=None, derandomize=True,
                suppress_health_check=list(hypothesis.HealthCheck),
            )  # fmt: skip
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def one(case: schemathesis.Case[Any]) -> None:
                nonlocal asked
                asked += 1
                case.call_and_validate(headers={} if "projects" in case.path else KEY)

            try:
                one()
            except hypothesis.errors.Unsatisfiable:
                continue  # nothing can be wrong about an operation without parameters
    return asked


def test_the_gateway_is_as_its_document_says(url: str) -> None:
    assert conform(url, 8) > 150


@pytest.mark.long
def test_the_gateway_is_as_its_document_says_over_and_over(url: str) -> None:
    assert conform(url, 500) > 5_000
