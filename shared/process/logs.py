"""How a log line looks: one JSON object a line on stderr.

It names nobody, though what a database or a library says of a value it does not take may quote it.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from shared.contracts.personal import hidden
from shared.process.clock import iso


class JsonFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": iso(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(_nameless(line), ensure_ascii=False)


def _nameless(value: Any) -> Any:
    match value:
        case dict():
            return {hidden(str(name)): _nameless(inner) for name, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_nameless(inner) for inner in value]
        case None | bool() | int() | float():
            return value
    return hidden(str(value))


def configure(service: str, level: str = "INFO") -> None:
    """Send every logger of this process to stderr as JSON; libraries only where they say more than we do.

    aiokafka says twenty times a second that a broker is away; our own retries say it once each.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.access", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL if level != "DEBUG" else logging.DEBUG)
