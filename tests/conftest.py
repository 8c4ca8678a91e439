"""What every test may use: servers, each started at most once for the run; and that unit tests stay offline."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.brokers import apache_kafka, embedded_kafka, kafka, server_home, topics_of
from tests.support.postgres import database, postgres, postgres_server

__all__ = [
    "apache_kafka",
    "database",
    "embedded_kafka",
    "kafka",
    "postgres",
    "postgres_server",
    "server_home",
    "topics_of",
]

UNIT = Path(__file__).parent / "unit"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A unit test that opens a socket is not a unit test."""
    for item in items:
        if UNIT in item.path.parents:
            item.add_marker(pytest.mark.disable_socket)
