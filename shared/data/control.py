"""What the installation is, and which definitions and keys are in force.

Services poll these and keep the last good copy on disk, so that Postgres may be away.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from shared.contracts.rules import Rules, decode_rules
from shared.data.db import Connection, Pool, is_moment
from shared.process.errors import Fatal, Transient


@dataclass(frozen=True)
class InstallationRow:
    """The one row of `control.installation`."""

    shards: int
    log_id: str
    salt: str
    sending: bool


async def installation(connection: Connection) -> InstallationRow:
    """`Fatal` when `perennial migrate` has not made the installation yet."""
    row = await connection.fetchrow("SELECT shards, log_id, salt, sending FROM control.installation")
    if row is None:
        raise Fatal("this database holds no installation; run `perennial migrate` first")
    return InstallationRow(**dict(row))


async def rules_of(connection: Connection, version: int) -> Rules:
    """One rules version. `Transient` when it is not (yet) there: the row is written before any record."""
    row = await connection.fetchrow("SELECT body FROM control.rules WHERE version = $1", version)
    if row is None:
        raise Transient(f"rules version {version} is not in control.rules (yet)")
    return decode_rules(row["body"])


class _Kept(msgspec.Struct):
    version: int
    rules: Rules


class RulesBook:
    """The rules versions this process knows, and the newest. `refresh` asks Postgres, else the disk."""

    def __init__(self, keep: Path | None = None) -> None:
        self._keep = keep
        self._known: dict[int, Rules] = {}
        self.newest = 0

    async def refresh(self, pool: Pool | None) -> int:
        """Learn of newer versions; the newest known. `Transient` while none is known at all."""
        row = None
        try:
            if pool is not None:
                row = await pool.fetchrow("SELECT version, body FROM control.rules ORDER BY version DESC LIMIT 1")
        except Exception as error:
            if not is_moment(error):
                raise
        if row is not None and row["version"] not in self._known:
            self._learn(row["version"], decode_rules(row["body"]))
            self._write()
        if not self._known:
            self._read()
        if not self._known:
            raise Transient("no rules version is known yet; run `perennial apply PACK`")
        return self.newest

    async def get(self, pool: Pool, version: int) -> Rules:
        """The given version. `Transient` when it cannot be had now."""
        if version not in self._known:
            try:
                async with pool.acquire() as connection:
                    self._learn(version, await rules_of(connection, version))
            except Exception as error:
                if is_moment(error):
                    raise Transient(f"postgres: {error}") from error
                raise
        return self._known[version]

    def known(self, version: int) -> Rules:
        return self._known[version]

    def _learn(self, version: int, rules: Rules) -> None:
        self._known[version] = rules
        self.newest = max(self.newest, version)

    def _write(self) -> None:
        if self._keep is None:
            return
        self._keep.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._keep.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(_Kept(self.newest, self._known[self.newest])))
        temporary.replace(self._keep)

    def _read(self) -> None:
        if self._keep is None or not self._keep.exists():
            return
        kept = msgspec.json.decode(self._keep.read_bytes(), type=_Kept)
        self._learn(kept.version, kept.rules)
