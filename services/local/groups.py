"""Telling the embedded broker that a process is dead: its groups would wait for the sessions of its members to end."""

from __future__ import annotations

import asyncio
import contextlib

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.group import LeaveGroupRequest

from shared.contracts.topics import Names
from shared.kafka.shard_consumer import client_id

GROUPS = ("ingest", "segmenter", "notifier", "context")
SECONDS = 2.0


async def dismiss(bootstrap: str, names: Names, pid: int) -> None:
    """Have every member that was the process `pid` leave its group. Where that fails, the group waits."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    with contextlib.suppress(KafkaError, TimeoutError, ValueError, LookupError):
        try:
            async with asyncio.timeout(SECONDS):
                await client.bootstrap()
                node = client.get_random_node()
                for group in map(names.group, GROUPS):
                    # one group at a time: the client misreads an answer about several
                    answer = await client.send(node, DescribeGroupsRequest([group]))
                    for member, *_ in answer.groups[0][5]:
                        # this broker makes a member's id of the client's and something random
                        if member.startswith(f"{client_id(pid)}-"):
                            await client.send(node, LeaveGroupRequest(group, member))
        finally:
            await client.close()
