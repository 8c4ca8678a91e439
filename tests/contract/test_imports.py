"""Do the borders between the parts hold?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_import_contracts_hold() -> None:
    """Services know nothing of each other, a domain does no I/O, the kernel knows no service."""
    program = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run(
        [str(program), "--no-cache"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
