"""The write and admin keys: hashes in the database, plain keys only in the home's `keys.json` (mode 0600)."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.local.program import LocalError
from shared.contracts.identifiers import fresh_id
from shared.data.db import Connection

Kind = Literal["write", "admin"]
SOURCES: dict[Kind, str] = {"write": "app", "admin": "operator"}


@dataclass(frozen=True)
class Keys:
    write: str
    admin: str


def key_hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


async def create(connection: Connection, kind: Kind, source: str) -> str:
    """Makes a key and returns it; nothing keeps it in plain text. A revoked key's source may be used again."""
    key = fresh_id("wk_" if kind == "write" else "ak_")
    taken = await connection.fetchrow("SELECT revoked_at FROM control.key WHERE source = $1", source)
    if taken is not None:
        if taken["revoked_at"] is None:
            raise LocalError(f"there is a key for the source {source!r} already: revoke it first, or name another")
        await connection.execute("DELETE FROM control.key WHERE source = $1", source)
    await connection.execute(
        "INSERT INTO control.key (sha256, kind, source) VALUES ($1, $2, $3)", key_hash(key), kind, source
    )
    return key


async def revoke(connection: Connection, source: str) -> None:
    done = await connection.execute(
        "UPDATE control.key SET revoked_at = now() WHERE source = $1 AND revoked_at IS NULL", source
    )
    if done == "UPDATE 0":
        raise LocalError(f"there is no valid key for the source {source!r}; `perennial keys list` shows them")


async def ensure(connection: Connection, path: Path) -> Keys:
    """The home's own two keys: those of the file while they are valid, new ones otherwise."""
    kept = read(path)
    plain: dict[Kind, str] = {}
    for kind, source in SOURCES.items():
        key = kept.get(kind)
        valid = key is not None and await connection.fetchval(
            "SELECT 1 FROM control.key WHERE sha256 = $1 AND kind = $2 AND revoked_at IS NULL", key_hash(key), kind
        )
        if not valid:
            # Whoever holds the home holds the installation: a lost file replaces the key it held.
            await connection.execute("DELETE FROM control.key WHERE source = $1", source)
            key = await create(connection, kind, source)
        assert key is not None
        plain[kind] = key
    write(path, plain)
    return Keys(plain["write"], plain["admin"])


def read(path: Path) -> dict[str, str]:
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {str(kind): str(key) for kind, key in kept.items()} if isinstance(kept, dict) else {}


def write(path: Path, plain: dict[Kind, str]) -> None:
    """Written beside and renamed, readable by its owner alone from the first byte."""
    half = path.with_suffix(".tmp")
    half.unlink(missing_ok=True)
    with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump(plain, out)
    half.replace(path)
