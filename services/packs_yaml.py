"""Which line of which file did a value of a pack come from?

Reads YAML into the types of `shared.contracts.rules` without losing the place of anything, so that every
fault is found in one go and names its file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec
import yaml

T = TypeVar("T")
Key = str | int
Place = tuple[Key, ...]

MAX_FILE_BYTES = 1_000_000
MAX_NODES = 100_000


class Fault(NamedTuple):
    """One thing wrong with a pack; `message` says what was expected."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class PackError(ValueError):
    """A pack that cannot be used, with everything that is wrong with it."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = sorted(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class _Loader(yaml.SafeLoader):
    """YAML whose plain scalars are text, null, true/false, integers and decimals; dates and `yes` stay text."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|false|False", "tTfF"),
    ("null", r"~|null|Null|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?[0-9]+\.[0-9]+", "-+0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


class Source:
    """A pack as it was written: its value, where each part of it stands, and the faults found so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.value: dict[str, Any] = {}
        self.faults: list[Fault] = []
        self._lines: dict[Place, tuple[str, int]] = {}
        self._built = 0

    def fault(self, place: Place, message: str, below: int = 0) -> Fault:
        """A fault at a place (or at the nearest one above it that stands in a file), `below` lines further."""
        for length in range(len(place), -1, -1):
            if place[:length] in self._lines:
                file, line = self._lines[place[:length]]
                return Fault(file, line + below, message)
        return Fault(str(self.folder / "pack.yaml"), 1, message)

    def convert(self, kind: type[T]) -> T | None:
        """The whole as `kind`; None when anything is wrong, which `faults` then says."""
        if self.faults:
            return None
        self.faults.extend(self._wrong((), self.value, kind))
        return None if self.faults else msgspec.convert(self.value, kind)

    def read(self, file: Path, place: Place, without: frozenset[str] = frozenset()) -> Any:
        """The value of a file, whose parts stand at `place`, but for some of its keys; None and faults when it is
        not YAML."""
        try:
            if file.stat().st_size > MAX_FILE_BYTES:
                self.faults.append(Fault(str(file), 1, f"more than {MAX_FILE_BYTES} bytes"))
                return None
            node = yaml.compose(file.read_text(encoding="utf-8"), _Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.faults.append(Fault(str(file), mark.line + 1 if mark else 1, f"not YAML: {error.problem}"))
            return None
        except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
            self.faults.append(Fault(str(file), 1, f"cannot be read: {error}"))
            return None
        if node is None:
            self.faults.append(Fault(str(file), 1, "is empty"))
            return None
        if isinstance(node, yaml.MappingNode):
            node.value = [(key, value) for key, value in node.value if str(key.value) not in without]
        return self._build(str(file), place, node, frozenset())

    def _build(self, file: str, place: Place, node: yaml.Node, above: frozenset[int]) -> Any:
        line = node.start_mark.line + 1
        self._lines.setdefault(place, (file, line))
        self._built += 1
        if id(node) in above or self._built > MAX_NODES:
            self.faults.append(Fault(file, line, "refers to itself, or repeats too much"))
            return None
        above |= {id(node)}
        if isinstance(node, yaml.MappingNode):
            out: dict[str, Any] = {}
            for key, value in node.value:
                name, key_line = str(key.value), key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    self.faults.append(Fault(file, key_line, "a key must be text"))
                elif name in out:
                    self.faults.append(Fault(file, key_line, f"{name!r} is given twice"))
                else:
                    out[name] = self._build(file, (*place, name), value, above)
                    if not isinstance(value, yaml.ScalarNode):
                        self._lines[*place, name] = (file, key_line)
            return out
        if isinstance(node, yaml.SequenceNode):
            return [self._build(file, (*place, n), value, above) for n, value in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
            self._lines[place] = (file, line + 1)
        try:
            return _scalar(node)
        except ValueError:
            self.faults.append(Fault(file, line, f"expected a number, not {node.value[:40]!r}"))
            return None

    def _wrong(self, place: Place, value: Any, kind: Any) -> Iterator[Fault]:
        """Every fault of a value that should be a `kind`."""
        origin, arguments = get_origin(kind), get_args(kind)
        if _is_struct(kind):
            yield from self._wrong_struct(place, value, kind)
        elif origin is dict and isinstance(value, dict):
            for name, inner in value.items():
                if get_origin(arguments[0]) is Literal and name not in get_args(arguments[0]):
                    yield self.fault((*place, name), f"{_named(place, name)}: expected one of {_list(arguments[0])}")
                else:
                    yield from self._wrong((*place, name), inner, arguments[1])
        elif origin is list and isinstance(value, list):
            for n, inner in enumerate(value):
                yield from self._wrong((*place, n), inner, arguments[0])
        elif origin is UnionType and isinstance(value, dict) and any(map(_is_struct, arguments)):
            yield from self._wrong_choice(place, value, [c for c in arguments if _is_struct(c)])
        elif origin is Literal:
            if value not in arguments:
                yield self.fault(place, f"{_named(place)}: expected one of {_list(kind)}, not {value!r}")
        else:
            try:
                msgspec.convert(value, kind)
            except msgspec.ValidationError as error:
                yield self.fault(place, f"{_named(place)}: {str(error).split(' - at ')[0]}")

    def _wrong_choice(self, place: Place, value: dict[str, Any], kinds: list[Any]) -> Iterator[Fault]:
        """Every fault of a value that should be one of these, which its `type` tells apart."""
        if len(kinds) == 1:
            yield from self._wrong_struct(place, value, kinds[0])
            return
        choices = {str(c.__struct_config__.tag): c for c in kinds}
        if str(value.get("type")) in choices:
            yield from self._wrong_struct(place, value, choices[str(value["type"])])
        else:
            yield self.fault((*place, "type"), f"{_named(place, 'type')}: expected one of {', '.join(choices)}")

    def _wrong_struct(self, place: Place, value: Any, kind: type[msgspec.Struct]) -> Iterator[Fault]:
        if not isinstance(value, dict):
            yield self.fault(place, f"{_named(place)}: expected a mapping, not {type(value).__name__}")
            return
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        tag = kind.__struct_config__.tag_field
        for name in value:
            if name not in fields and name != tag:
                yield self.fault(
                    (*place, name), f"{_named(place, name)}: there is no such field; expected {', '.join(fields)}"
                )
        for name, field in fields.items():
            if name in value:
                yield from self._wrong((*place, name), value[name], field.type)
            elif field.required:
                yield self.fault(place, f"{_named(place)}: {name} is missing")


def read(folder: Path) -> Source:
    """The pack in a folder: `pack.yaml`, with `campaigns/*.yaml` behind the campaigns it lists itself.

    `extends: NAME` takes all that the pack does not say itself from the pack beside it, which extends none; of its
    campaign files those that have no namesake.
    """
    source = Source(folder)
    value = source.read(folder / "pack.yaml", ())
    if isinstance(value, Mapping):
        source.value = dict(value)
    elif not source.faults:
        source.faults.append(Fault(str(folder / "pack.yaml"), 1, "expected a mapping"))
    files = {file.name: file for file in (folder / "campaigns").glob("*.yaml")}
    if "extends" in source.value:
        base = folder.parent / str(source.value.pop("extends"))
        if base == folder or base.parent != folder.parent or not (base / "pack.yaml").is_file():
            source.faults.append(source.fault(("extends",), f"extends: there is no pack {base.name!r} beside this one"))
        else:
            below = source.read(base / "pack.yaml", (), without=frozenset(source.value))
            source.value = (dict(below) if isinstance(below, Mapping) else {}) | source.value
            files = {file.name: file for file in (base / "campaigns").glob("*.yaml")} | files
    campaigns = source.value.get("campaigns", [])
    for _, file in sorted(files.items()):
        if isinstance(campaigns, list):
            campaign = source.read(file, ("campaigns", len(campaigns)))
            campaigns = [*campaigns, campaign]
    if campaigns:
        source.value["campaigns"] = campaigns
    return source


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _scalar(node: yaml.Node) -> Any:
    match node.tag.rpartition(":")[2]:
        case "bool":
            return node.value.lower() == "true"
        case "null":
            return None
        case "int":
            return int(node.value)
        case "float":
            return float(node.value)
    return node.value


def _named(place: Place, *more: Key) -> str:
    out = ""
    for part in (*place, *more):
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out or "the pack"


def _list(kind: Any) -> str:
    return ", ".join(str(choice) or '""' for choice in get_args(kind))
