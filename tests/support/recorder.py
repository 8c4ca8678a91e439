"""A listener in front of the gateway that passes everything on and notes what clients ask for; with TLS where it is
given a certificate, as the terminator in front of a gateway has it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

_HEAD = re.compile(rb"(GET|HEAD|POST|OPTIONS) (\S+) HTTP/1\.1\r\n(.*?)\r\n\r\n", re.DOTALL)
_NOTED = ("content-type", "content-encoding", "authorization", "transfer-encoding")
_CHUNK = 65_536


class Recorder:
    """`asked` counts `METHOD path` with the noted headers, credentials shortened to their scheme."""

    def __init__(self, gateway: str) -> None:
        target = urlsplit(gateway)
        assert target.hostname is not None and target.port is not None
        self._target = target.hostname, target.port
        self.asked: Counter[str] = Counter()
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward, away = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(self._pass(reader, away, note=True), self._pass(onward, writer))
        except (OSError, ssl.SSLError):
            pass
        finally:
            for one in (away, writer):
                one.close()
                with contextlib.suppress(OSError, ssl.SSLError):
                    await one.wait_closed()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, note: bool = False) -> None:
        tail = b""
        while piece := await source.read(_CHUNK):
            if note:
                tail += piece
                end = 0
                for found in _HEAD.finditer(tail):
                    self._note(*(part.decode("latin-1") for part in found.groups()))
                    end = found.end()
                tail = tail[end:][-_CHUNK:]
            sink.write(piece)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
        else:
            sink.close()

    def _note(self, method: str, path: str, headers: str) -> None:
        given = {
            name.strip().lower(): value.strip() for name, _, value in (h.partition(":") for h in headers.split("\r\n"))
        }
        if "authorization" in given:
            given["authorization"] = given["authorization"].partition(" ")[0]
        noted = [f"{name}={given[name]}" for name in _NOTED if name in given]
        self.asked[" ".join([method, path, *noted])] += 1


@asynccontextmanager
async def recording(gateway: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Recorder]:
    recorder = Recorder(gateway)
    server = await asyncio.start_server(recorder._serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    recorder.url = f"{'https' if tls else 'http'}://localhost:{port}"
    try:
        yield recorder
    finally:
        server.close()
