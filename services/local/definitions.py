"""How a pack's rules reach the database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg

from services.local.program import LocalError

PACKS = Path(__file__).resolve().parents[2] / "packs"


def pack_path(name: str) -> Path:
    """A pack's folder: the path given, or a shipped pack of this name."""
    for path in (Path(name), PACKS / name):
        if path.is_dir():
            return path
    shipped = ", ".join(shipped_packs()) or "none"
    raise LocalError(f"there is no pack {name!r}: name a folder, or one of those shipped ({shipped})")


def shipped_packs() -> list[str]:
    return sorted(path.name for path in PACKS.iterdir() if path.is_dir()) if PACKS.is_dir() else []


def load(name: str) -> Any:
    """The pack's rules; LocalError says which file and line are wrong."""
    from services import packs

    try:
        return packs.load_pack(pack_path(name))
    except (ValueError, OSError) as error:
        raise LocalError(f"pack {name}: {error}") from error


async def apply(dsn: str, name: str) -> str:
    """Installs the pack's rules as the newest version; returns what was done, in words."""
    from services import packs

    rules = load(name)
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=2)
    try:
        version = await packs.install(pool, rules)
    finally:
        await pool.close()
    return f"rules version {version}"
