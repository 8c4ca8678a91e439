"""What does a pack say, what is wrong with it, and how does it come into force?

A pack is a folder `NAME` with `pack.yaml` (the fields of `shared.contracts.rules.Rules`) and, optionally, one
campaign per file in `campaigns/*.yaml`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from services import packs_check, packs_yaml
from services.packs_yaml import Fault, PackError
from shared.contracts.rules import Rules, decode_rules, encode_rules
from shared.contracts.tracking_plan import TrackingPlan
from shared.data.db import Connection

__all__ = ["Fault", "Installed", "PackError", "available", "diff", "find", "install", "load_pack"]

# Two `perennial apply` at once must not both think their version is the next one.
_INSTALL_LOCK = 0x7065726E_7061636B  # "pernpack"


class Installed(NamedTuple):
    """The version in force, and whether it is new."""

    version: int
    new: bool


def homes() -> list[Path]:
    """Folders that hold packs: PERENNIAL_PACKS (several: joined as PATH is), then the ones shipped."""
    told = os.environ.get("PERENNIAL_PACKS", "")
    return [Path(p) for p in told.split(os.pathsep) if p] + [Path(__file__).resolve().parents[1] / "packs"]


def available() -> list[str]:
    """Names of the packs that can be loaded by name."""
    return sorted({f.parent.name for home in homes() for f in home.glob("*/pack.yaml")})


def find(path_or_name: str | Path) -> Path:
    """The folder of a pack, by path or by name. `PackError` names those there are."""
    told = Path(path_or_name)
    by_name = [home / told for home in homes()] if len(told.parts) == 1 else []
    for folder in (told if told.is_dir() else told.parent, *by_name):
        if (folder / "pack.yaml").is_file() and (folder in by_name or told.exists()):
            return folder
    known = ", ".join(available()) or "none"
    raise PackError([Fault(str(path_or_name), 1, f"there is no such pack (a folder with a pack.yaml); known: {known}")])


def load_pack(path_or_name: str | Path) -> Rules:
    """The rules of a pack. `PackError` lists everything that is wrong with it, by file and line."""
    source = packs_yaml.read(find(path_or_name))
    rules = source.convert(Rules)
    faults = source.faults
    if rules is not None:
        faults += packs_check.check(rules, source)
    if rules is None or faults:
        raise PackError(faults)
    return rules


class _PlanFile(msgspec.Struct, forbid_unknown_fields=True):
    tracking_plan: TrackingPlan


def load_tracking_plan(file_or_pack: str | Path, rules: Rules) -> Rules:
    """`rules` with the plan of a YAML file that holds `tracking_plan` alone; or a pack's own rules. `PackError` lists
    everything that is wrong."""
    file = Path(file_or_pack)
    if not file.is_file() or file.name == "pack.yaml":
        return load_pack(file_or_pack)
    source = packs_yaml.Source(file.parent)
    source.value = source.read(file, ()) or {}
    alone = source.convert(_PlanFile)
    if alone is None:
        raise PackError(source.faults)
    rules = replace(rules, tracking_plan=alone.tracking_plan)
    faults = [source.fault(place, message, below) for place, message, below in packs_check.tracking_plan(rules)]
    if faults:
        raise PackError(faults)
    return rules


def diff(old: Rules | None, new: Rules) -> list[str]:
    """What changes, one line each: `campaigns.welcome.holdout_percent: 0 → 10`."""
    before = dict(_leaves("", msgspec.to_builtins(old))) if old is not None else {}
    after = dict(_leaves("", msgspec.to_builtins(new)))
    lines = []
    for path in [*before, *(p for p in after if p not in before)]:
        if path not in after:
            lines.append(f"- {path}: {before[path]}")
        elif path not in before:
            lines.append(f"+ {path}: {after[path]}")
        elif before[path] != after[path]:
            lines.append(f"~ {path}: {before[path]} → {after[path]}")
    return lines


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Dotted paths and their values; entries with an id are named by it, other lists are one value."""
    if isinstance(value, list) and value and all(isinstance(v, dict) and "id" in v for v in value):
        value = {v["id"]: {**v, "place": n} for n, v in enumerate(value)}
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(f"{path}.{name}" if path else str(name), inner)
    else:
        yield path, msgspec.json.encode(value).decode()


async def install(connection: Connection, rules: Rules, note: str = "") -> int:
    """Put rules in force as the next version of `control.rules`; the version now in force."""
    return (await install_version(connection, rules, note)).version


async def install_version(connection: Connection, rules: Rules, note: str = "") -> Installed:
    """`install`, saying whether a version was made: none is when the latest says the same."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _INSTALL_LOCK)
        latest = await connection.fetchrow("SELECT version, body FROM control.rules ORDER BY version DESC LIMIT 1")
        if latest is not None and decode_rules(latest["body"]) == rules:
            return Installed(int(latest["version"]), new=False)
        version = int(latest["version"]) + 1 if latest is not None else 1
        await connection.execute(
            "INSERT INTO control.rules (version, pack, body, note) VALUES ($1, $2, $3, $4)",
            version,
            rules.pack,
            encode_rules(rules).decode(),
            note,
        )
        return Installed(version, new=True)
