"""`python -m services.ingest.gateway`: takes what apps post; 200 once the broker has it."""

from __future__ import annotations

import sys

import uvloop

from services.ingest.gateway.app import run

if __name__ == "__main__":
    sys.exit(uvloop.run(run()))
