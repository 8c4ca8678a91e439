"""What else the gateway answers, and what its OpenAPI document says of the tracking calls."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse

from services.ingest.domain.intake_http import MAX_BATCH_BYTES, MAX_BATCH_EVENTS, MAX_EVENT_BYTES
from services.ingest.gateway.keys import KeyBook
from services.ingest.gateway.tracking import CALLS, Call
from shared.contracts.identifiers import MAX_ID_CHARS
from shared.process.http import ApiError, Health, service_app

_ERRORS = {
    "400": "Malformed, or not an event: do not send it again.",
    "401": "The write key is missing, unknown or revoked.",
    "408": "The body did not arrive in time.",
    "413": f"More than {MAX_BATCH_BYTES} bytes a body or {MAX_EVENT_BYTES} bytes an event.",
    "429": "This gateway holds as much as it may: send it again after Retry-After seconds.",
    "503": "The broker did not acknowledge every event: send it again after Retry-After seconds.",
}
_TEXT = {"type": ["string", "null"]}
_OBJECT = {"type": ["object", "null"]}
_ID = {**_TEXT, "maxLength": MAX_ID_CHARS, "pattern": "^[^\\u0000]*$"}
_NAME = {"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARS, "pattern": "^[^\\u0000]+$"}
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
    "Batch": {
        "type": "object",
        "description": "Events as in the calls of their `type`. One that is not as it should be is rejected later.",
        "required": ["batch"],
        "additionalProperties": True,
        "properties": {
            "batch": {"type": "array", "maxItems": MAX_BATCH_EVENTS, "items": {}},
            "sentAt": {"description": "when the client sent this, by its own clock"},
            "writeKey": {"description": "the write key, where no header names one"},
        },
    },
    "Success": {
        "type": "object",
        "required": ["success"],
        "additionalProperties": False,
        "properties": {
            "success": {"type": "boolean", "const": True},
            "rejected": {
                "description": "with strict=1: which events will be rejected, as far as their bytes alone tell",
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["index", "message_id", "reason"],
                    "properties": {
                        "index": {"type": "integer", "minimum": 0},
                        "message_id": {"type": ["string", "null"]},
                        "reason": {"type": "string"},
                    },
                },
            },
        },
    },
}


def _event(kind: str) -> dict[str, Any]:
    """One call of Segment's spec, as it is taken."""
    return {
        "type": "object",
        "description": "A call of Segment's specification, of one user; other fields may be added.",
        "required": ["event"] if kind == "track" else [],
        "anyOf": [
            {"required": ["userId"], "properties": {"userId": _NAME}},
            {"required": ["anonymousId"], "properties": {"anonymousId": _NAME}},
        ],
        "additionalProperties": True,
        "properties": {
            "type": {"enum": [kind, None]},
            "userId": _ID,
            "anonymousId": _ID,
            "event": _NAME if kind == "track" else {},
            "messageId": _TEXT,
            "timestamp": _TEXT,
            "originalTimestamp": _TEXT,
            "sentAt": _TEXT,
            "writeKey": {"description": "the write key, where no header names one"},
            "properties": _OBJECT,
            "traits": _OBJECT,
            "context": _OBJECT,
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
        "parameters": [
            {
                "name": "strict",
                "in": "query",
                "schema": {"type": "string"},
                "description": "1: say what will be rejected",
            }
        ],
        "requestBody": {
            "required": True,
            "content": _json("Batch") if call.batch else {"application/json": {"schema": _event(call.kind)}},
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
        responses={
            status: {"description": meaning, "content": _json("Error")}
            for status, meaning in ((404, "No such write key."), (503, "The write keys are not known yet."))
        },
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
