"""What the child processes are told: one environment for all of them, and what only the push sandbox is told."""

from __future__ import annotations

import json
import os
from pathlib import Path

from services.demo.service_account import service_account
from services.local.home import OFFSETS, Home

ROOT = Path(__file__).resolve().parents[2]


def environment(
    home: Home,
    *,
    kafka: str,
    postgres: str,
    port: int,
    shards: int,
    prefix: str = "",
    sandbox: bool = False,
    dev: bool = False,
    quick_groups: bool = False,
) -> dict[str, str]:
    """The whole environment of a child. What the caller's environment says stays, where this does not say it."""
    env = dict(os.environ)
    env |= {
        "PERENNIAL_KAFKA": kafka,
        "PERENNIAL_POSTGRES": postgres,
        "PERENNIAL_PREFIX": prefix,
        "PERENNIAL_SHARDS": str(shards),
        "PERENNIAL_HOME": str(home.path),
        "PERENNIAL_INSTANCE": "local",
        "PERENNIAL_CLOCK": str(home.clock_file) if dev else "",
    }
    env |= {f"PERENNIAL_{name.upper()}_PORT": str(port + OFFSETS[name]) for name in OFFSETS if name != "kafka"}
    if quick_groups:
        # The embedded broker keeps a static member waiting without counting that as contact, and gives it up meanwhile.
        env["PERENNIAL_INSTANCE"] = ""
        # It lets whoever joins wait for half a session, so a long one is a slow start.
        for name in ("INGEST", "SEGMENTER", "NOTIFIER"):
            env.setdefault(f"PERENNIAL_{name}_SESSION_SECONDS", "6")
    if sandbox:
        env["PERENNIAL_NOTIFIER_FCM_URL"] = f"http://127.0.0.1:{port + OFFSETS['sandbox']}"
        env["PERENNIAL_NOTIFIER_FCM_ACCOUNT_FILE"] = str(home.fcm_account_file)
    # A checkout runs without being installed.
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env["PYTHONUNBUFFERED"] = "1"
    return env


def sandbox_environment(notifier: str, segmenter: str, admin_key: str) -> dict[str, str]:
    """What the push sandbox asks with why a push was sent."""
    return {
        "PERENNIAL_SANDBOX_NOTIFIER": notifier,
        "PERENNIAL_SANDBOX_SEGMENTER": segmenter,
        "PERENNIAL_SANDBOX_ADMIN_KEY": admin_key,
    }


def write_fcm_account(home: Home, sandbox_url: str) -> None:
    """A throw-away service account whose tokens come from the sandbox; made once, its address kept current."""
    path = home.fcm_account_file
    try:
        account = json.loads(path.read_text())
    except (OSError, ValueError):
        account = service_account(sandbox_url, "demo")
    account["token_uri"] = f"{sandbox_url}/token"
    half = path.with_suffix(".tmp")
    half.unlink(missing_ok=True)
    with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump(account, out, indent=2)
    half.replace(path)
