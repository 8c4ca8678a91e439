"""What a push provider's request says, and how that provider words each of its answers. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import jwt
import msgspec

Provider = Literal["fcm", "apns", "webpush"]
PROVIDERS: tuple[Provider, ...] = ("fcm", "apns", "webpush")
MAX_PAYLOAD_BYTES = 4096
MAX_TTL_SECONDS = 2_419_200
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"


class Told(msgspec.Struct, frozen=True):
    """What a push says, whoever's protocol it came by. `sound`: the phone may make itself heard; `action`: show it, or
    `retract` what stands under the collapse id."""

    token: str
    title: str = ""
    body: str = ""
    data: dict[str, Any] = {}
    collapse_id: str = ""
    ttl_seconds: int | None = None
    sound: bool = True
    action: str = "show"


class Answer(msgspec.Struct, frozen=True):
    status: int
    body: bytes
    headers: dict[str, str] = {}


class Invalid(Exception):
    """The provider would refuse this request; `field` is the one at fault, where there is one."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _Notification(_Strict):
    title: str = ""
    body: str = ""
    image: str = ""


class _Android(_Strict):
    collapse_key: str = ""
    priority: Literal["NORMAL", "HIGH", "normal", "high"] = "NORMAL"
    ttl: str = ""
    restricted_package_name: str = ""
    data: dict[str, str] = {}
    notification: dict[str, Any] = {}
    fcm_options: dict[str, Any] = {}
    direct_boot_ok: bool = False


class _Apns(_Strict):
    headers: dict[str, str] = {}
    payload: dict[str, Any] = {}
    fcm_options: dict[str, Any] = {}
    live_activity_token: str = ""


class _Message(_Strict):
    token: str = ""
    topic: str = ""
    condition: str = ""
    name: str = ""
    notification: _Notification = msgspec.field(default_factory=_Notification)
    data: dict[str, str] = {}
    android: _Android = msgspec.field(default_factory=_Android)
    apns: _Apns = msgspec.field(default_factory=_Apns)
    webpush: dict[str, Any] = {}
    fcm_options: dict[str, Any] = {}


class _FcmRequest(_Strict):
    message: _Message
    validate_only: bool = False


_fcm_request = msgspec.json.Decoder(_FcmRequest)


def read_fcm(raw: bytes) -> tuple[Told, bool]:
    """An FCM v1 request and whether it is `validate_only`. Invalid as FCM would find it."""
    try:
        request = _fcm_request.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        field = re.search(r"\$\.([\w.]+)", str(error))
        raise Invalid(f"Invalid JSON payload received. {error}", field[1] if field else "") from error
    message = request.message
    if not message.token:
        raise Invalid("Recipient of the message is not set.", "message.token")
    if message.topic or message.condition:
        raise Invalid("Exactly one of token, topic and condition may be set.", "message")
    texts = (message.notification.title, message.notification.body, *message.data, *message.data.values())
    if sum(len(text.encode()) for text in texts) > MAX_PAYLOAD_BYTES:
        raise Invalid(f"Android message is too big: more than {MAX_PAYLOAD_BYTES} bytes.", "message")
    for key in message.data:
        if key in ("from", "message_type") or key.startswith(("google.", "gcm.")):
            raise Invalid(f"Invalid data payload key: {key}", "message.data")
    headers = {name.lower(): value for name, value in message.apns.headers.items()}
    collapse_id = message.android.collapse_key or headers.get("apns-collapse-id", "")
    if len(headers.get("apns-collapse-id", "").encode()) > 64:
        raise Invalid("apns-collapse-id is longer than 64 bytes.", "message.apns.headers")
    told = Told(
        token=message.token,
        title=message.notification.title,
        body=message.notification.body,
        data=dict(message.data),
        collapse_id=collapse_id,
        ttl_seconds=_fcm_ttl(message.android.ttl),
        sound="sound" in message.android.notification or "sound" in _aps(message.apns.payload),
        action=_action(message.data, message.notification.title or message.notification.body),
    )
    return told, request.validate_only


def _aps(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    aps = payload.get("aps")
    return aps if isinstance(aps, Mapping) else {}


def _action(data: Mapping[str, Any], shown: str) -> str:
    """What the app is told to do; without a word of it, a push that shows something shows it."""
    told = data.get("action")
    return told if isinstance(told, str) and told else "show" if shown else ""


def _fcm_ttl(ttl: str) -> int | None:
    if not ttl:
        return None
    found = re.fullmatch(r"(\d{1,10})(?:\.\d{1,9})?s", ttl)
    if found is None:
        raise Invalid(f"Illegal duration format: {ttl}", "message.android.ttl")
    if int(found[1]) > MAX_TTL_SECONDS:
        raise Invalid("Ttl is longer than four weeks.", "message.android.ttl")
    return int(found[1])


def read_apns(token: str, raw: bytes, headers: Mapping[str, str], real_ms: int) -> Told:
    """An APNs request; Invalid carries APNs' own reason."""
    if len(raw) > MAX_PAYLOAD_BYTES:
        raise Invalid("PayloadTooLarge")
    if not headers.get("apns-topic"):
        raise Invalid("MissingTopic")
    collapse_id = headers.get("apns-collapse-id", "")
    if len(collapse_id.encode()) > 64:
        raise Invalid("BadCollapseId")
    expiration = headers.get("apns-expiration", "0")
    if not expiration.isdecimal():
        raise Invalid("BadExpirationDate")
    try:
        payload = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid("PayloadEmpty") from error
    aps = _aps(payload)
    payload.pop("aps", None)
    alert = aps.get("alert", "")
    title, body = (alert.get("title", ""), alert.get("body", "")) if isinstance(alert, dict) else ("", alert)
    ttl = max(0, int(expiration) - real_ms // 1000)
    action = _action(payload, str(title) or str(body))
    return Told(token, str(title), str(body), payload, collapse_id, ttl, "sound" in aps, action)


def read_webpush(token: str, headers: Mapping[str, str]) -> Told:
    """A Web Push request (RFC 8030); its body is encrypted for the browser, so it has no title here."""
    ttl = headers.get("TTL", "")
    if not ttl.isdecimal():
        raise Invalid("TTL header is missing or not a number")
    return Told(token, collapse_id=headers.get("Topic", ""), ttl_seconds=int(ttl))


def fcm_error(status: int, code: str, error_code: str, message: str, field: str = "") -> Answer:
    """FCM's error JSON: Google's status name `code`, and FCM's own `error_code` in the details (if any)."""
    details: list[dict[str, Any]] = [{"@type": _FCM_ERROR, "errorCode": error_code}] if error_code else []
    if field:
        details.append({"@type": _BAD_REQUEST, "fieldViolations": [{"field": field, "description": message}]})
    error: dict[str, Any] = {"code": status, "message": message, "status": code}
    if details:
        error["details"] = details
    return Answer(status, msgspec.json.encode({"error": error}))


def failure(provider: Provider, mode: str, retry_after_seconds: float) -> Answer:
    """How `provider` words the failure that `mode` names."""
    wait = {"Retry-After": f"{retry_after_seconds:g}"}
    match provider, mode:
        case "fcm", "429":
            answer = fcm_error(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", "Quota exceeded for quota metric.")
            return msgspec.structs.replace(answer, headers=wait)
        case "fcm", "503":
            answer = fcm_error(503, "UNAVAILABLE", "UNAVAILABLE", "The service is currently unavailable.")
            return msgspec.structs.replace(answer, headers=wait)
        case "fcm", "500":
            return fcm_error(500, "INTERNAL", "INTERNAL", "Internal error encountered.")
        case "fcm", "unregistered":
            return fcm_error(404, "NOT_FOUND", "UNREGISTERED", "Requested entity was not found.")
        case "fcm", _:
            return fcm_error(
                400,
                "INVALID_ARGUMENT",
                "INVALID_ARGUMENT",
                "The registration token is not a valid FCM registration token",
                "message.token",
            )
        case _:
            status, reason = {
                "429": (429, "TooManyRequests"),
                "503": (503, "ServiceUnavailable"),
                "500": (500, "InternalServerError"),
                "unregistered": (410, "Unregistered"),
            }.get(mode, (400, "BadDeviceToken"))
            return Answer(status, msgspec.json.encode({"reason": reason}), wait if mode in ("429", "503") else {})


def wrong_assertion(grant: object, assertion: object, now: int) -> str:
    """What is wrong with a JWT-bearer request; empty if nothing is."""
    if grant != _GRANT:
        return f"grant_type must be {_GRANT}"
    if not isinstance(assertion, str):
        return "assertion is missing"
    try:
        header = jwt.get_unverified_header(assertion)
        claims: dict[str, Any] = jwt.decode(assertion, options={"verify_signature": False})
    except jwt.PyJWTError as error:
        return f"Invalid JWT: {error}"
    if header.get("alg") != "RS256":
        return "Invalid JWT: alg must be RS256"
    for name in ("iss", "scope", "aud"):
        if not isinstance(claims.get(name), str) or not claims[name]:
            return f"Invalid JWT: {name} is missing"
    issued, expires = claims.get("iat"), claims.get("exp")
    if not isinstance(issued, int) or not isinstance(expires, int):
        return "Invalid JWT: iat and exp must be whole numbers"
    if not issued - 300 <= now < expires or expires - issued > 3600:
        return "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe."
    return ""
