"""A stand-in for a service: ready at once, notes its end in `HOME/ends`. `python dummy_service.py NAME`."""

from __future__ import annotations

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import FrameType

NAME = sys.argv[1]


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def end(_: int, __: FrameType | None) -> None:
    with (Path(os.environ["PERENNIAL_HOME"]) / "ends").open("a") as ends:
        ends.write(f"{NAME}\n")
    os._exit(0)


signal.signal(signal.SIGTERM, end)
HTTPServer(("127.0.0.1", int(os.environ[f"PERENNIAL_{NAME.upper()}_PORT"])), Ready).serve_forever()
