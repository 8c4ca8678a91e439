"""How a pack's rules reach the database."""

from __future__ import annotations

from services import packs
from services.local.program import LocalError
from shared.contracts.rules import Rules, decode_rules
from shared.data.db import Connection


def load(name: str) -> Rules:
    """The pack's rules; LocalError says which file and line are wrong."""
    try:
        return packs.load_pack(name)
    except (packs.PackError, OSError) as error:
        raise LocalError(f"pack {name}: {error}") from error


def load_tracking_plan(file_or_pack: str, rules: Rules | None) -> Rules:
    """Rules with the plan of a file, or a pack's own; LocalError says which file and line are wrong."""
    if rules is None:
        raise LocalError("no pack is in force yet; run `perennial apply PACK`")
    try:
        return packs.load_tracking_plan(file_or_pack, rules)
    except (packs.PackError, OSError) as error:
        raise LocalError(f"tracking plan {file_or_pack}: {error}") from error


async def apply(connection: Connection, name: str) -> str:
    """Installs the pack's rules as the newest version, unless they are that already; what was done, in words."""
    done = await packs.install_version(connection, load(name))
    return f"rules version {done.version}" + (" installed" if done.new else " is in force already")


async def version(connection: Connection, number: int | None = None) -> Rules | None:
    """One rules version, the newest by default; None where there is none."""
    row = await connection.fetchrow(
        "SELECT body FROM control.rules WHERE $1::int IS NULL OR version = $1 ORDER BY version DESC LIMIT 1", number
    )
    return decode_rules(row["body"]) if row is not None else None


async def rollback(connection: Connection, number: int) -> str:
    """Installs an old version's content as the newest one: versions themselves never change."""
    rules = await version(connection, number)
    if rules is None:
        raise LocalError(f"there is no rules version {number}; `perennial packs list` shows them")
    done = await packs.install_version(connection, rules, f"as version {number}")
    return f"rules version {done.version}" + (f" says what {number} said" if done.new else " says so already")
