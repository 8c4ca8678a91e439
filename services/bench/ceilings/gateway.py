"""The gateway's ceiling: uvicorn with httptools, msgspec, and one record batch per request.

The bytes that came, keyed by user, over as many partitions, acknowledged by all copies (acks=all). No write keys,
limits, budget, deadlines, record headers or metrics; and the whole of a request goes to its first user's partition,
which is right for a phone's and wrong for a back end's.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack
from typing import Any
from zlib import crc32

import msgspec
from aiokafka import AIOKafkaProducer

from services.bench import helper
from shared.process.http import serve


class _Envelope(msgspec.Struct, gc=False):
    batch: list[msgspec.Raw] | None = None


class _User(msgspec.Struct, gc=False):
    userId: str = ""  # noqa: N815 - as it is posted


_envelope = msgspec.json.Decoder(_Envelope).decode
_user = msgspec.json.Decoder(_User).decode
_START: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"17")]}
_BODY: dict[str, Any] = {"type": "http.response.body", "body": b'{"success": true}'}


class Bare:
    def __init__(self, producer: AIOKafkaProducer, topic: str, partitions: int) -> None:
        self._producer, self._topic, self._partitions = producer, topic, partitions
        # concurrent send_batch calls on one partition time out in aiokafka 0.14
        self._turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        events = _envelope(body).batch if scope["path"] == "/v1/batch" else [body]
        records = [(_user(event).userId.encode(), bytes(event)) for event in events or ()]
        await self._send(crc32(records[0][0]) % self._partitions, records)
        await send(_START)
        await send(_BODY)

    async def _send(self, partition: int, records: list[tuple[bytes, bytes]]) -> None:
        batch = self._producer.create_batch()
        for key, value in records:
            batch.append(timestamp=None, key=key, value=value)
        batch.close()
        async with self._turns[partition]:
            acknowledged = await self._producer.send_batch(batch, self._topic, partition=partition)
        await acknowledged


async def _open(stack: AsyncExitStack, setup: dict[str, Any]) -> helper.Ask:
    producer = AIOKafkaProducer(
        bootstrap_servers=setup["kafka"], acks="all", linger_ms=0, max_batch_size=900_000, max_request_size=8_000_000
    )
    await producer.start()
    stack.push_async_callback(producer.stop)
    app = Bare(producer, setup["topic"], setup["partitions"])
    serving = asyncio.create_task(serve(app, "127.0.0.1", setup["port"], http="httptools", ws="none", backlog=4096))
    stack.callback(serving.cancel)
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", setup["port"])
        except OSError:
            await asyncio.sleep(0.02)
            continue
        writer.close()
        break

    async def ask(_: dict[str, Any]) -> dict[str, Any]:
        return {}

    return ask


if __name__ == "__main__":
    helper.serve(_open)
