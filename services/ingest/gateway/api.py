"""What else the gateway answers, and what its OpenAPI document says of the tracking calls."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse

from services.ingest.domain.intake_http import MAX_BATCH_BYTES, MAX_EVENT_BYTES
from services.ingest.gateway.keys import KeyBook
from services.ingest.gateway.tracking import CALLS, SHORT, Call
from shared.process.http import ApiError, Health, service_app

_ERRORS = {
    "400": "Malformed, or not an event: do not send it again.",
    "401": "The write key is missing, unknown or revoked.",
    "408": "The body did not arrive in time.",
    "413": f"More than {MAX_BATCH_BYTES} bytes a body or {MAX_EVENT_BYTES} bytes an event.",
    "429": "This gateway holds as much as it may: send it again after Retry-After seconds.",
    "503": "The broker did not acknowledge every event: send it again after Retry-After seconds.",
}
_ID = {"type": ["string", "null"], "maxLength": 256}
_SCHEMAS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "required": ["code", "message"],
        "properties": {
            "code": {"type": "string"},
            "message": {"type": "string"},
            "details": {"type": "object"},
        },
    },
    "Event": {
        "type": "object",
        "description": "A call of Segment's spec; needs userId or anonymousId, a track call also event.",
        "additionalProperties": True,
        "properties": {
            "type": {"type": "string", "enum": list(SHORT.values())},
            "userId": _ID,
            "anonymousId": _ID,
            "event": {"type": ["string", "null"]},
            "messageId": _ID,
            "timestamp": {"type": ["string", "null"]},
            "sentAt": {"type": ["string", "null"]},
            "writeKey": {"type": ["string", "null"]},
            "properties": {"type": ["object", "null"]},
            "traits": {"type": ["object", "null"]},
            "context": {"type": ["object", "null"]},
        },
    },
    "Batch": {
        "type": "object",
        "required": ["batch"],
        "additionalProperties": True,
        "properties": {
            "batch": {"type": "array", "items": {"$ref": "#/components/schemas/Event"}},
            "sentAt": {"type": ["string", "null"]},
            "writeKey": {"type": ["string", "null"]},
        },
    },
    "Success": {
        "type": "object",
        "required": ["success"],
        "properties": {"success": {"type": "boolean", "const": True}},
    },
}


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _operation(path: str, call: Call) -> dict[str, Any]:
    answers: dict[str, Any] = {
        "200": {
            "description": "Every event is acknowledged by the broker.",
            "content": _json("Success"),
        }
    }
    for status, meaning in _ERRORS.items():
        answers[status] = {"description": meaning, "content": _json("Error")}
        if status in ("408", "429", "503"):
            answers[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return {
        "tags": ["tracking"],
        "summary": "Events of any age" if call.mode == "import" else "A batch of events" if call.batch else call.kind,
        "operationId": path.removeprefix("/v1/"),
        "security": [{"basic": []}, {"bearer": []}, {}],
        "requestBody": {
            "required": True,
            "content": _json("Batch" if call.batch else "Event"),
        },
        "responses": answers,
    }


def make_api(keys: KeyBook, health: Health) -> FastAPI:
    """Health, metrics, the SDKs' settings call, and the OpenAPI document."""
    app = service_app("gateway", health)

    @app.get(
        "/v1/projects/{key}/settings",
        tags=["tracking"],
        summary="What mobile SDKs ask for when they start",
    )
    async def settings(key: str, request: Request) -> JSONResponse:
        if not keys.known:
            raise ApiError(
                503,
                "not_ready",
                "the write keys are not known yet; try again",
                headers={"retry-after": "1"},
            )
        if keys.by_key(key) is None:
            raise ApiError(404, "unknown_write_key", "this write key is not known, or was revoked")
        host = request.headers.get("host", request.url.netloc)
        integration = {"apiKey": key, "apiHost": f"{host}/v1"}
        answer = {
            "integrations": {"Segment.io": integration},
            "plan": {},
            "edgeFunction": {},
            "metrics": {"sampleRate": 0},  # SDKs would tell their own maker how they do
        }
        return JSONResponse(answer, headers={"access-control-allow-origin": "*"})

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for path, call in CALLS.items():
                document["paths"][path] = {"post": _operation(path, call)}
            components = document.setdefault("components", {})
            components.setdefault("schemas", {}).update(_SCHEMAS)
            components["securitySchemes"] = {
                "basic": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "the write key as user, no password",
                },
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "the write key",
                },
            }
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app
