"""What of a raw event may be shown to people: its shape, and the values that say what happened rather than to whom."""

from __future__ import annotations

import json
from typing import Any

from services.ingest.domain.personal import personal

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
"""Of a raw event, what is shown as it is unless it names a person; anything else may be a person's."""


def shown(value: bytes | None) -> Any:
    """A raw event's bytes as they may be shown."""
    try:
        return masked(json.loads(value or b""))
    except (ValueError, RecursionError):
        return f"not JSON: {len(value or b'')} bytes"


def masked(value: Any, key: str = "") -> Any:
    """The same shape with every value hidden that `SHOWN_KEYS` does not name, or that names a person."""
    if isinstance(value, dict):
        return {nameless(str(name)): masked(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [masked(inner, key) for inner in value]
    if value is None or isinstance(value, bool):
        return value
    text = str(value)
    if key in SHOWN_KEYS and not personal(text):
        return value
    return _hidden(text, type(value).__name__)


def nameless(text: str) -> str:
    """The text, or its first letter and its length where it names a person."""
    return _hidden(text, "str") if personal(text) else text


def _hidden(text: str, kind: str) -> str:
    return f"{text[:1]}… ({kind}, {len(text)})"
