"""`python -m services.segmenter`"""

from __future__ import annotations

from services.segmenter.app import run
from shared.process.main import start

start("segmenter", run)
