"""Are the topics in the code, in `asyncapi.yaml` and as they are created the same?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from services.local.topics import new_topic
from services.notifier.context.intake import ContextRecord
from shared.contracts.asyncapi import ContextEvent
from shared.contracts.topics import SPECS, Names, Topic, TopicSpec

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def asyncapi() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "asyncapi.yaml").read_text())
    return document


def test_generated_documents_are_current() -> None:
    """A type or a metric that changed without its document would leave subscribers with the old one."""
    found = subprocess.run(
        [sys.executable, str(ROOT / "deploy/docs/build.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


def test_every_topic_has_a_specification_and_a_channel(asyncapi: dict[str, Any]) -> None:
    assert [spec.topic for spec in SPECS] == list(Topic)
    assert [channel["address"] for channel in asyncapi["channels"].values()] == [topic.value for topic in Topic]
    public = {c["address"] for c in asyncapi["channels"].values() if c["tags"] == [{"name": "public"}]}
    assert public == {spec.topic.value for spec in SPECS if spec.public}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.topic.value)
def test_topics_are_created_as_described(asyncapi: dict[str, Any], spec: TopicSpec) -> None:
    """Retention and partitions decide what a reader may miss; they must be what was promised."""
    made = new_topic(spec, Names("shop."), 32, 3)
    described = asyncapi["channels"][spec.topic.name.lower()]["bindings"]["kafka"]
    assert made.name == f"shop.{described['topic']}"
    assert made.num_partitions == described["partitions"]
    assert made.topic_configs["retention.ms"] == str(described["topicConfiguration"]["retention.ms"])
    assert [made.topic_configs["cleanup.policy"]] == described["topicConfiguration"]["cleanup.policy"]
    assert made.topic_configs["min.insync.replicas"] == "2"


def test_asyncapi_document_is_well_formed(asyncapi: dict[str, Any]) -> None:
    """The parts AsyncAPI 3.0 requires, references that lead somewhere, schemas that are schemas."""
    assert asyncapi["asyncapi"] == "3.0.0"
    assert asyncapi["info"]["title"] and asyncapi["info"]["version"]
    for reference in references(asyncapi):
        found: Any = asyncapi
        for step in reference.removeprefix("#/").split("/"):
            assert step in found, reference
            found = found[step]
    for operation in asyncapi["operations"].values():
        assert operation["action"] in ("send", "receive")
        assert operation["channel"]["$ref"].startswith("#/channels/")
    for message in asyncapi["components"]["messages"].values():
        assert message["contentType"] and "payload" in message
    for schema in asyncapi["components"]["schemas"].values():
        Draft7Validator.check_schema(schema)


def test_every_topic_has_a_message(asyncapi: dict[str, Any]) -> None:
    assert not {channel["address"] for channel in asyncapi["channels"].values() if not channel["messages"]}


def test_context_records_have_the_fields_described() -> None:
    """The kernel may not import the service that writes them, so the two could drift apart."""
    assert ContextRecord.__struct_fields__ == ContextEvent.__struct_fields__


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(found := value.get("$ref"), str):
            yield found
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)
