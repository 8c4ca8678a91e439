"""What of a raw event may be shown to people: its shape, and the values that say what happened rather than to whom."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from shared.contracts.personal import personal

SHOWN_KEYS = frozenset(
    {
        "type",
        "event",
        "messageId",
        "timestamp",
        "sentAt",
        "originalTimestamp",
        "channel",
        "version",
        "locale",
        "timezone",
    }
)
"""Of a raw event and its context, what is shown as it is unless it names a person; anything else may be a person's, and
so is whatever an app puts into properties and traits under these names."""

_HEADERS = frozenset({"received_at", "sent_at", "type", "message_id", "source", "mode", "replay_of"})


_LEAST_TOLD = 4
"""From so many characters on the first one is shown: of an age or a yes it would be most."""


def shown(value: bytes | None) -> Any:
    """A raw event's bytes as they may be shown."""
    try:
        return masked(json.loads(value or b""))
    except (ValueError, RecursionError):
        return f"not JSON: {len(value or b'')} bytes"


def shown_headers(headers: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """A raw record's headers as they may be shown: those of the gateway and of replays, unless they name a person."""
    texts = ((name, value.decode(errors="replace")) for name, value in headers)
    return {nameless(name): nameless(text) if name in _HEADERS else _hidden(text, "str") for name, text in texts}


def masked(value: Any, path: tuple[str, ...] = ()) -> Any:
    """The same shape with every value hidden that is not to be shown, or that names a person."""
    if isinstance(value, dict):
        return {nameless(str(name)): masked(inner, (*path, str(name))) for name, inner in value.items()}
    if isinstance(value, list):
        return [masked(inner, path) for inner in value]
    if value is None or isinstance(value, bool):
        return value
    text = str(value)
    if _is_shown(path) and not personal(text):
        return value
    return _hidden(text, type(value).__name__)


def _is_shown(path: tuple[str, ...]) -> bool:
    if not path or path[-1] not in SHOWN_KEYS:
        return False
    return len(path) == 1 or (path[0] == "context" and "traits" not in path)


def nameless(text: str) -> str:
    """The text, or its first letter and its length where it names a person."""
    return _hidden(text, "str") if personal(text) else text


def _hidden(text: str, kind: str) -> str:
    first = text[:1] if len(text) >= _LEAST_TOLD else ""
    return f"{first}… ({kind}, {len(text)})"
