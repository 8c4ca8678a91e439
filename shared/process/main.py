"""How a service process begins and ends: uvloop, one coroutine, an exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from shared.process.errors import Fatal


def start(service: str, run: Callable[[], Coroutine[Any, Any, int]]) -> None:
    """Run the service and end the process. Exit code 3 with one clear line for `Fatal`."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(run())
    except Fatal as error:
        logging.getLogger(f"perennial.{service}").critical("%s", error)
        code = 3
    except KeyboardInterrupt:
        code = 0
    sys.stderr.flush()
    # clients' background tasks may still wait for a broker that is away
    os._exit(code)
