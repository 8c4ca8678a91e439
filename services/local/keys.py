"""The write and admin keys: hashes in the database, plain keys only in the home's `keys.json` (mode 0600)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from services.local.program import LocalError
from shared.contracts.identifiers import fresh_id
from shared.data.db import Connection
from shared.data.keys import SCOPES, key_hash
from shared.process.clock import iso

Kind = Literal["write", "admin"]
SOURCES: dict[Kind, str] = {"write": "app", "admin": "operator"}

_VALID = """
SELECT sha256, kind, scopes, events_per_second FROM control.key_in_force WHERE source = $1 ORDER BY created_at
"""
_INSERT = "INSERT INTO control.key (sha256, kind, source, scopes, events_per_second) VALUES ($1, $2, $3, $4, $5)"
_LIST = """
SELECT k.sha256, k.kind, k.source, k.scopes, k.events_per_second, k.created_at, k.expires_at, k.revoked_at,
    k.sha256 IN (SELECT sha256 FROM control.key_in_force) AS valid,
    u.last_used_at, coalesce(u.events, 0) AS events, coalesce(u.refused, 0) AS refused,
    coalesce(v.rejected, 0)::bigint AS rejected_today
FROM control.key k LEFT JOIN control.key_use u USING (sha256) LEFT JOIN (
    SELECT source, sum(rejected) AS rejected FROM control.source_verdict GROUP BY source
) v ON v.source = k.source AND k.kind = 'write'
ORDER BY k.created_at, k.sha256
"""


@dataclass(frozen=True)
class Keys:
    write: str
    admin: str


async def create(
    connection: Connection,
    kind: Kind,
    source: str,
    *,
    scopes: Sequence[str] = SCOPES,
    events_per_second: int | None = None,
) -> str:
    """Makes a key and returns it; nothing keeps it in plain text. A revoked key's source may be used again."""
    if await connection.fetch(_VALID, source):
        message = f"there is a key for the source {source!r} already: rotate it, revoke it first, or name another"
        raise LocalError(message)
    return await _insert(connection, kind, source, scopes if kind == "admin" else (), events_per_second)


async def rotate(connection: Connection, source: str, overlap: timedelta, home_keys: Path) -> str:
    """Makes a key that takes the place of the source's, which works on for `overlap`; returns the key that was made.

    Where the home keeps the source's key in plain text, it keeps this one from then on.
    """
    async with connection.transaction():
        valid = await connection.fetch(_VALID, source)
        if not valid:
            raise _unknown(source)
        newest = valid[-1]
        key = await _insert(connection, newest["kind"], source, newest["scopes"], newest["events_per_second"])
        await connection.execute(
            "UPDATE control.key SET expires_at = least(expires_at, now() + $2) WHERE sha256 = ANY($1::text[])",
            [row["sha256"] for row in valid],
            overlap,
        )
    kept = read(home_keys)
    if key_hash(kept.get(newest["kind"], "")) in {row["sha256"] for row in valid}:
        write(home_keys, {**kept, newest["kind"]: key})
    return key


async def revoke(connection: Connection, source: str) -> None:
    """Makes every key of the source invalid."""
    done = await connection.execute(
        "UPDATE control.key SET revoked_at = now() WHERE source = $1 AND revoked_at IS NULL", source
    )
    if done == "UPDATE 0":
        raise _unknown(source)


async def limit(connection: Connection, source: str, events_per_second: int | None) -> None:
    """Bounds what the source's write keys may post to each gateway process; None: no bound."""
    done = await connection.execute(
        "UPDATE control.key SET events_per_second = $2 WHERE source = $1 AND kind = 'write' AND revoked_at IS NULL",
        source,
        events_per_second,
    )
    if done == "UPDATE 0":
        raise _unknown(source)


async def listed(connection: Connection) -> list[dict[str, Any]]:
    """Every key by its hash, with what it was used for."""
    return [dict(row) for row in await connection.fetch(_LIST)]


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A listed key as JSON."""
    instants = ("created_at", "expires_at", "revoked_at", "last_used_at")
    return {**row, **{name: row[name] and iso(int(row[name].timestamp() * 1000)) for name in instants}}


def line(row: Mapping[str, Any]) -> str:
    """A listed key as text."""
    if row["revoked_at"]:
        state = f"revoked {row['revoked_at']:%Y-%m-%dT%H:%MZ}"
    elif row["expires_at"]:
        state = f"{'until' if row['valid'] else 'ended'} {row['expires_at']:%Y-%m-%dT%H:%MZ}"
    else:
        state = "valid"
    if row["kind"] == "admin":
        use = f"allows {', '.join(row['scopes']) or 'nothing'}"
    else:
        last = f"{row['last_used_at']:%Y-%m-%dT%H:%MZ}" if row["last_used_at"] else "never"
        use = f"used {last}, {row['events']} events, {row['refused']} requests refused"
        use += f", {row['rejected_today']} events of the source rejected in a day"
        use += f", at most {row['events_per_second']} events/s" if row["events_per_second"] else ""
    return f"{row['kind']:<6} {row['source']:<20} {state:<26} sha256 {row['sha256'][:8]}…  {use}"


def span(text: str) -> timedelta:
    """`30m`, `24h`, `7d` as a span; LocalError for anything else."""
    found = re.fullmatch(r"(\d{1,6})([smhd])|0", text.strip())
    if found is None:
        raise LocalError(f"{text!r} is no span; say for example 30m, 24h, 7d or 0")
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    return timedelta(**{units[found[2]]: int(found[1])}) if found[1] else timedelta()


async def ensure(connection: Connection, path: Path) -> Keys:
    """The home's own two keys: those of the file while they are valid, new ones otherwise."""
    kept = read(path)
    plain: dict[str, str] = {}
    for kind, source in SOURCES.items():
        key = kept.get(kind)
        valid = key is not None and await connection.fetchval(
            "SELECT 1 FROM control.key_in_force WHERE sha256 = $1 AND kind = $2", key_hash(key), kind
        )
        if not valid:
            # Whoever holds the home holds the installation: a lost file replaces the key it held.
            await connection.execute(
                "UPDATE control.key SET revoked_at = now() WHERE source = $1 AND revoked_at IS NULL", source
            )
            key = await create(connection, kind, source)
        assert key is not None
        plain[kind] = key
    write(path, plain)
    return Keys(plain["write"], plain["admin"])


async def _insert(
    connection: Connection, kind: Kind, source: str, scopes: Sequence[str], events_per_second: int | None
) -> str:
    key = fresh_id("wk_" if kind == "write" else "ak_")
    await connection.execute(_INSERT, key_hash(key), kind, source, list(scopes), events_per_second)
    return key


def _unknown(source: str) -> LocalError:
    return LocalError(f"there is no valid key for the source {source!r}; `perennial keys list` shows them")


def read(path: Path) -> dict[str, str]:
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {str(kind): str(key) for kind, key in kept.items()} if isinstance(kept, dict) else {}


def write(path: Path, plain: dict[str, str]) -> None:
    """Written beside and renamed, readable by its owner alone from the first byte."""
    half = path.with_suffix(".tmp")
    half.unlink(missing_ok=True)
    with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump(plain, out)
    half.replace(path)
