"""`python -m services.archive`"""

from __future__ import annotations

from services.archive.app import run
from shared.process.main import start

start("archive", run)
