"""How pushes are taken when no phone is there: a local stand-in for FCM, APNs and Web Push.

`python -m services.demo.sandbox`. Everything is plain HTTP/1.1 on the loopback; real APNs is HTTP/2 only.
The OAuth endpoint checks an assertion's form and times, not its signature.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib.resources import files

import aiohttp
import msgspec
from aiohttp import web
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.demo.sandbox_store import KEEP, Behaviour, Behaviours, Mailbox, Tokens, message_name
from services.demo.sandbox_why import Untold, Why
from services.demo.sandbox_wire import (
    Answer,
    Invalid,
    Provider,
    Told,
    failure,
    fcm_error,
    read_apns,
    read_fcm,
    read_webpush,
    wrong_assertion,
)
from services.demo.service_account import service_account
from shared.contracts.identifiers import fresh_id
from shared.process import logs
from shared.process.clock import Clock
from shared.process.settings import Installation, load
from shared.process.supervisor import Supervisor

log = logging.getLogger("perennial.sandbox")
encode = msgspec.json.Encoder().encode


class SandboxSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="PERENNIAL_SANDBOX_", extra="ignore")

    port: int = Field(8090, description="port of the push sandbox")
    notifier: str = Field("", description="address of the notifier, asked why a push was sent")
    segmenter: str = Field("", description="address of the segmenter, asked what caused it")
    admin_key: str = Field("", description="key to ask them with; it is not told to the browser")
    keep: int = Field(KEEP, gt=0, description="so many of the last pushes can be seen")


class Sandbox:
    """The HTTP application; `real_ms` is the machine's clock, as tokens and arrival times are real. `why` tells what
    pushes were sent for (None: nobody can); the last `keep` pushes can be seen."""

    def __init__(self, real_ms: Callable[[], int], why: Why | None = None, keep: int = KEEP) -> None:
        self._real_ms, self._why = real_ms, why
        self.mailbox = Mailbox(keep)
        self.behaviours = Behaviours()
        self.tokens = Tokens()
        self._page = files("services.demo").joinpath("sandbox_page.html").read_text()
        self._account: dict[str, str] | None = None

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024)
        add = app.router.add_route
        add("POST", "/v1/projects/{project}/messages:send", self._fcm)
        add("POST", "/3/device/{token}", self._apns)
        add("POST", "/webpush/{token}", self._webpush)
        for path in ("/token", "/oauth2/token"):
            add("POST", path, self._token)
        add("DELETE", "/token", self._revoke)
        add("GET", "/service-account.json", self._service_account)
        add("GET", "/pushes", self._pushes)
        add("DELETE", "/pushes", self._clear)
        add("GET", "/pushes/count", self._count)
        add("GET", r"/pushes/{n:\d+}/why", self._told_why)
        add("DELETE", "/devices/{token}", self._uninstall)
        add("GET", "/shown", self._shown)
        add("PUT", "/behaviour", self._behave)
        add("GET", "/behaviour", self._behaviour)
        add("GET", "/healthz", self._healthz)
        add("GET", "/readyz", self._readyz)
        add("GET", "/", self._index)
        add("*", "/{elsewhere:.*}", self._nowhere)
        return app

    # -- what providers speak

    async def _fcm(self, request: web.Request) -> web.Response:
        raw = await request.read()
        if not self.tokens.good(request.headers.get("Authorization", ""), self._real_ms()):
            message = "Request had invalid authentication credentials. Expected OAuth 2 access token."
            return _response(fcm_error(401, "UNAUTHENTICATED", "", message))
        try:
            told, validate_only = read_fcm(raw)
        except Invalid as error:
            return _response(fcm_error(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", str(error), error.field))
        project = request.match_info["project"]

        def accept() -> Answer:
            number = 0 if validate_only else self.mailbox.add("fcm", told, self._real_ms()).n
            return Answer(200, encode({"name": f"projects/{project}/messages/{message_name(number, told.token)}"}))

        return await self._behaved(request, "fcm", told, accept)

    async def _apns(self, request: web.Request) -> web.Response:
        raw = await request.read()
        if not request.headers.get("Authorization", "").lower().startswith("bearer "):
            return _response(Answer(403, encode({"reason": "MissingProviderToken"})))
        try:
            told = read_apns(request.match_info["token"], raw, request.headers, self._real_ms())
        except Invalid as error:
            return _response(Answer(413 if str(error) == "PayloadTooLarge" else 400, encode({"reason": str(error)})))

        def accept() -> Answer:
            arrived = self.mailbox.add("apns", told, self._real_ms())
            return Answer(200, b"", {"apns-id": request.headers.get("apns-id", message_name(arrived.n, told.token))})

        return await self._behaved(request, "apns", told, accept)

    async def _webpush(self, request: web.Request) -> web.Response:
        await request.read()
        try:
            told = read_webpush(request.match_info["token"], request.headers)
        except Invalid as error:
            return _response(Answer(400, encode({"reason": str(error)})))

        def accept() -> Answer:
            arrived = self.mailbox.add("webpush", told, self._real_ms())
            return Answer(201, b"", {"Location": f"/webpush/receipts/{arrived.n}"})

        return await self._behaved(request, "webpush", told, accept)

    async def _behaved(
        self, request: web.Request, provider: Provider, told: Told, accept: Callable[[], Answer]
    ) -> web.Response:
        behaviour = self.behaviours.next(provider, told.token)
        if behaviour.delay_ms:
            await asyncio.sleep(behaviour.delay_ms / 1000)
        match behaviour.mode:
            case "ok":
                return _response(accept())
            case "hang":
                await asyncio.Event().wait()  # until the client goes, which cancels this handler
            case "reset":
                _reset(request)
            case "accept_then_reset":
                accept()
                _reset(request)
            case _:
                return _response(failure(provider, behaviour.mode, behaviour.retry_after_seconds))
        return web.Response()

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        wrong = wrong_assertion(form.get("grant_type"), form.get("assertion"), self._real_ms() // 1000)
        if wrong:
            return _response(Answer(400, encode({"error": "invalid_grant", "error_description": wrong})))
        token = fresh_id("sandbox.")
        self.tokens.issue(token, self._real_ms())
        told = {"access_token": token, "expires_in": self.tokens.lifetime_seconds, "token_type": "Bearer"}
        return _response(Answer(200, encode(told)))

    # -- what people and tests ask

    async def _revoke(self, _: web.Request) -> web.Response:
        self.tokens.revoke_all()
        return _response(Answer(200, b"{}"))

    async def _service_account(self, request: web.Request) -> web.Response:
        if self._account is None:
            self._account = await asyncio.to_thread(service_account, f"http://{request.host}")
        return _response(Answer(200, encode(self._account)))

    async def _pushes(self, request: web.Request) -> web.Response:
        try:
            since, limit = int(request.query.get("since", "0")), int(request.query.get("limit", "1000"))
        except ValueError:
            return _error("bad_cursor", "since and limit are whole numbers")
        items, cursor = self.mailbox.since(since, request.query.get("token"), max(1, min(limit, 20_000)))
        return _response(Answer(200, encode({"items": items, "next": None if cursor is None else str(cursor)})))

    async def _shown(self, request: web.Request) -> web.Response:
        """What phones show at this moment: of all pushes, what nothing has replaced, taken away or let expire."""
        items = self.mailbox.screens.now(self._real_ms(), request.query.get("token"))
        return _response(Answer(200, encode({"items": items, "next": None})))

    async def _clear(self, _: web.Request) -> web.Response:
        self.mailbox.clear()
        return _response(Answer(200, b"{}"))

    async def _count(self, _: web.Request) -> web.Response:
        box = self.mailbox
        told = {"count": sum(box.counts.values()), "kept": len(box), "last": box.last, "by_provider": box.counts}
        return _response(Answer(200, encode(told)))

    async def _told_why(self, request: web.Request) -> web.Response:
        """What the push with this number goes back to; for the page's button."""
        arrived = self.mailbox.get(int(request.match_info["n"]))
        message_id = str(arrived.data.get("message_id", "")) if arrived is not None else ""
        if not message_id:
            return _error("unknown_push", "no push with a message id is kept under this number", 404)
        if self._why is None:
            return _error("on_its_own", "this sandbox has no installation to ask", 503)
        try:
            return _response(Answer(200, encode(await self._why.of(message_id))))
        except Untold as error:
            return _error(error.code, str(error), error.status)

    async def _uninstall(self, request: web.Request) -> web.Response:
        """The app is deleted from this phone: from now on its token is dead, as FCM and APNs tell it."""
        self.behaviours.bury(request.match_info["token"])
        return _response(Answer(200, b"{}"))

    async def _behave(self, request: web.Request) -> web.Response:
        try:
            self.behaviours.set(msgspec.json.decode(await request.read(), type=Behaviour))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _error("bad_behaviour", str(error))
        return await self._behaviour(request)

    async def _behaviour(self, _: web.Request) -> web.Response:
        items = [msgspec.structs.replace(b, provider=p) for p, b in self.behaviours.current.items()]
        return _response(Answer(200, encode({"items": items, "next": None})))

    async def _healthz(self, _: web.Request) -> web.Response:
        return _response(Answer(200, b'{"status":"ok"}'))

    async def _readyz(self, _: web.Request) -> web.Response:
        return _response(Answer(200, b'{"status":"ready"}'))

    async def _nowhere(self, request: web.Request) -> web.Response:
        return _error("not_found", f"there is no {request.method} {request.path} here", 404)

    async def _index(self, _: web.Request) -> web.Response:
        nonce = fresh_id()
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "connect-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return web.Response(text=self._page.replace("{{nonce}}", nonce), content_type="text/html", headers=headers)


def _response(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, body=answer.body, headers=answer.headers, content_type="application/json")


def _error(code: str, message: str, status: int = 400) -> web.Response:
    return _response(Answer(status, encode({"code": code, "message": message})))


def _reset(request: web.Request) -> None:
    """Ends the connection with a TCP reset, as a crashed peer would, instead of an orderly close."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


async def start(sandbox: Sandbox, stack: AsyncExitStack, host: str, port: int) -> int:
    """Serve until the stack closes; returns the port (of use where 0 was asked for)."""
    runner = web.AppRunner(
        sandbox.app(), access_log=None, handler_cancellation=True, keepalive_timeout=75, shutdown_timeout=1
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, host, port, backlog=1024).start()
    return int(runner.addresses[0][1])


async def main() -> int:
    installation, settings = load(Installation), load(SandboxSettings)
    logs.configure("sandbox", installation.log_level)
    stack = AsyncExitStack()
    session = await stack.enter_async_context(aiohttp.ClientSession())
    why = Why(session, settings.notifier, settings.segmenter, settings.admin_key)
    port = await start(Sandbox(Clock().real_ms, why, settings.keep), stack, installation.bind, settings.port)
    log.info("listening", extra={"fields": {"host": installation.bind, "port": port}})
    return await Supervisor(stack).run()


if __name__ == "__main__":
    import uvloop

    sys.exit(uvloop.run(main()))
