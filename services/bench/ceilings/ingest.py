"""The ingest consumer's ceiling: fetch, decode, encode, one record per record to the same partition, acknowledged.

Same bytes in, partitions and acknowledgement; as many bytes out. Nothing is judged, looked up, proven or resumed.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from services.bench import helper
from services.bench.ceilings import reading
from shared.contracts.events import Accepted, Context, Device, encode
from shared.process.clock import monotonic

_GATHER = 5000


class _Device(msgspec.Struct, gc=False):
    id: str = ""
    type: str = ""
    token: str = ""


class _App(msgspec.Struct, gc=False):
    version: str = ""


class _Context(msgspec.Struct, gc=False):
    device: _Device
    app: _App
    locale: str = ""
    timezone: str = ""


class _Event(msgspec.Struct, gc=False, rename="camel"):
    context: _Context
    user_id: str = ""
    message_id: str = ""
    event: str = ""
    properties: dict[str, Any] = {}


_decode = msgspec.json.Decoder(_Event).decode


async def _open(stack: AsyncExitStack, setup: dict[str, Any]) -> helper.Ask:
    consumer, producer = await reading.opened(stack, setup)

    async def ask(told: dict[str, Any]) -> dict[str, Any]:
        """Does `events` records; how long that took."""
        began = monotonic()
        async for records in reading.polls(consumer, told["events"], _GATHER):
            values: defaultdict[int, list[tuple[bytes | None, bytes]]] = defaultdict(list)
            for record in records:
                event, offset = _decode(record.value), record.offset
                device, said = event.context.device, event.context
                context = Context(
                    Device(device.id, device.type, device.token), said.locale, said.timezone, said.app.version
                )
                decided = Accepted(
                    offset, offset - 1, b"\x00" * 8, 1, event.user_id, event.message_id, event.event, record.timestamp,
                    record.timestamp, "live", "bench", None, event.properties, context,
                )  # fmt: skip
                values[record.partition].append((record.key, encode(decided)))
            await asyncio.gather(
                *(reading.send(producer, setup["target"], p, several) for p, several in values.items())
            )
        return {"events": told["events"], "seconds": monotonic() - began}

    return ask


if __name__ == "__main__":
    helper.serve(_open)
