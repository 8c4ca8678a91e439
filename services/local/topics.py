"""Which topics an installation lacks, and making them.

A topic with another number of partitions than shards is refused, never changed: the shard of a user would move.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError

from services.local.program import LocalError
from shared.contracts.topics import SPECS, Names, TopicSpec

STOP_SECONDS = 5.0


@asynccontextmanager
async def admin(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """A connected admin client; LocalError when no broker answers."""
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=15_000)
    try:
        await client.start()
    except (KafkaError, OSError, ValueError) as error:
        await asyncio.wait({asyncio.ensure_future(client.close())}, timeout=STOP_SECONDS)
        raise LocalError(f"no Kafka broker answers at {bootstrap} ({error}); check --kafka") from error
    try:
        yield client
    finally:
        await asyncio.wait({asyncio.ensure_future(client.close())}, timeout=STOP_SECONDS)


def partitions_of(spec: TopicSpec, shards: int) -> int:
    return shards if spec.sharded else 1


async def found_partitions(client: AIOKafkaAdminClient, names: Names) -> dict[str, int]:
    """Partitions per existing topic of this installation."""
    existing = set(await client.list_topics())
    wanted = [name for spec in SPECS if (name := names.topic(spec.topic)) in existing]
    if not wanted:
        return {}
    described: list[dict[str, Any]] = await client.describe_topics(wanted)
    return {topic["topic"]: len(topic["partitions"]) for topic in described}


def judge(found: dict[str, int], names: Names, shards: int) -> list[str]:
    """What is wrong with the topics: missing ones and wrong partition counts, each one sentence."""
    problems = []
    for spec in SPECS:
        name, wanted = names.topic(spec.topic), partitions_of(spec, shards)
        if name not in found:
            problems.append(f"topic {name} does not exist: run `perennial migrate`")
        elif found[name] != wanted:
            problems.append(
                f"topic {name} has {found[name]} partitions and this installation needs {wanted}: "
                "delete the topic or use another prefix"
            )
    return problems


async def check_topics(bootstrap: str, names: Names, shards: int) -> list[str]:
    async with admin(bootstrap) as client:
        return judge(await found_partitions(client, names), names, shards)


async def ensure_topics(bootstrap: str, names: Names, shards: int, replication_factor: int = 1) -> list[str]:
    """Creates the missing topics and returns their names; LocalError when an existing one does not fit."""
    async with admin(bootstrap) as client:
        found = await found_partitions(client, names)
        missing = [spec for spec in SPECS if names.topic(spec.topic) not in found]
        new = [new_topic(spec, names, shards, replication_factor) for spec in missing]
        if new:
            try:
                answer = await client.create_topics(new, timeout_ms=15_000)
            except TopicAlreadyExistsError:
                answer = None
            for refusal in getattr(answer, "topic_errors", ()):
                if refusal[1] not in (0, TopicAlreadyExistsError.errno):
                    raise LocalError(f"topic {refusal[0]} could not be created: Kafka error {refusal[1]} {refusal[2:]}")
        wrong: list[str] = []
        for _ in range(100):  # a created topic is not everywhere at once
            wrong = judge(await found_partitions(client, names), names, shards)
            if not any("does not exist" in problem for problem in wrong):
                break
            await asyncio.sleep(0.1)
        if wrong:
            raise LocalError("; ".join(wrong))
        return [topic.name for topic in new]


def new_topic(spec: TopicSpec, names: Names, shards: int, replication_factor: int) -> NewTopic:
    settings = {"retention.ms": str(spec.retention_ms), "cleanup.policy": "delete"}
    if spec.log_append_time:
        settings["message.timestamp.type"] = "LogAppendTime"
    if replication_factor >= 3:
        settings["min.insync.replicas"] = "2"
    return NewTopic(names.topic(spec.topic), partitions_of(spec, shards), replication_factor, topic_configs=settings)


async def cluster_id(bootstrap: str) -> str:
    """What the broker calls its cluster; a durable log's identity."""
    async with admin(bootstrap) as client:
        described = await client.describe_cluster()
        return str(described["cluster_id"])
