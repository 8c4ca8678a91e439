"""What every service answers alike: health, readiness, metrics, and errors with a code."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from shared.process.clock import monotonic
from shared.process.metrics import API_REQUESTS, API_SECONDS, WORKING, Told

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_UNCOUNTED = {"/healthz", "/readyz", "/metrics"}


class ApiError(Exception):
    """An answer other than success: HTTP status, `code` in snake case, a sentence that helps."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        details: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.details, self.headers = status, code, message, details, headers

    def response(self) -> JSONResponse:
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.details is not None:
            body["details"] = self.details
        return JSONResponse(body, self.status, headers=self.headers)


class Health:
    """Whether work progresses. A loop says `beat(name)` each round; healthy means every loop that was
    ever expected beat within its span. Readiness is a flag with a reason."""

    def __init__(self) -> None:
        self._beats: dict[str, tuple[float, float]] = {}
        self.not_ready: str = "starting"

    def beat(self, name: str, within_seconds: float = 30.0) -> None:
        self._beats[name] = (monotonic(), within_seconds)

    def ready(self) -> None:
        self.not_ready = ""

    def stuck(self) -> list[str]:
        now = monotonic()
        return [name for name, (at, span) in self._beats.items() if now - at > span]

    @property
    def working(self) -> bool:
        return not self.not_ready and not self.stuck()


class _Counted:
    """Counts the answers of an API and their time; what machines ask every few seconds is not among them."""

    def __init__(self, app: App, service: str) -> None:
        self._app, self._service = app, service
        self._seconds = API_SECONDS.labels(service)
        API_REQUESTS.labels(service, "500")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNCOUNTED:
            await self._app(scope, receive, send)
            return
        began, status = monotonic(), 500

        async def noting(message: Scope) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            API_REQUESTS.labels(self._service, str(status)).inc()
            self._seconds.observe(monotonic() - began)


def service_app(name: str, health: Health, **options: Any) -> FastAPI:
    """A FastAPI app with the routes and the error form that all services share."""
    app = FastAPI(title=f"Perennial {name}", **options)
    app.add_middleware(_Counted, service=name)
    WORKING.labels(name).set_function(lambda: float(health.working))
    told = Told(name)

    @app.exception_handler(ApiError)
    async def _api_error(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def _http_error(_: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(error.status_code, "http_error")
        headers = dict(error.headers) if error.headers else None
        return ApiError(error.status_code, code, str(error.detail), headers=headers).response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        wrong = [{"where": ".".join(map(str, e["loc"])), "what": e["msg"]} for e in error.errors()]
        return ApiError(422, "invalid_request", "the request is not valid", {"errors": wrong}).response()

    @app.exception_handler(Exception)
    async def _bug(_: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "internal_error", f"internal error: {type(error).__name__}").response()

    @app.get("/healthz", tags=["operations"], responses={503: {"description": "A loop does not come round."}})
    async def healthz() -> Response:
        stuck = health.stuck()
        if stuck:
            return JSONResponse({"status": "stuck", "loops": stuck}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", tags=["operations"], responses={503: {"description": "It cannot work now, and why."}})
    async def readyz() -> Response:
        if health.not_ready:
            return JSONResponse({"status": "not_ready", "reason": health.not_ready}, 503)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", tags=["operations"], responses={200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(told), media_type=CONTENT_TYPE_LATEST)

    return app


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the supervisor owns the signals


async def serve(app: Any, host: str, port: int, **options: Any) -> None:
    """Serve until cancelled; open requests get 5 s to end."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=5,
        server_header=False,
        **options,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
    raise RuntimeError("the HTTP server ended")
