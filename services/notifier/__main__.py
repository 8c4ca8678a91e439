"""`python -m services.notifier`"""

from __future__ import annotations

from services.notifier.app import run
from shared.process.main import start

start("notifier", run)
