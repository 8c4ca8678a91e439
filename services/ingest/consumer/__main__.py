"""`python -m services.ingest.consumer`"""

from __future__ import annotations

from services.ingest.consumer.app import run
from shared.process.main import start

start("ingest", run)
