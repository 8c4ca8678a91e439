"""Do an event's properties agree with the pack's tracking plan, and what becomes of them where they do not?

JSON Schema, draft 2020-12. Nothing is fetched: a schema refers to itself alone. Patterns are compiled by an engine
whose time is linear in the text (Rust's `regex`): it has no look-around and no back-references, a pattern that asks for
them is refused when the pack is read, and no text a phone sends can make one slow.

What is told of a violation comes from the plan: never a value, nor a name the plan does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from jsonschema_rs import Draft202012Validator, RegexOptions, ValidationError, ValidationErrorKind

from shared.contracts.rules import Rules, known_events
from shared.contracts.tracking_plan import PlannedEvent, TrackingPlan

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MAX_VIOLATIONS = 8
"""So many properties of one event are named one by one; all of a worse one's properties are in the wrong."""

UNPLANNED_EVENT, UNPLANNED_PROPERTY = "unplanned_event", "unplanned_property"
UNCHECKED = frozenset({"$identify", "$group", "$alias"})
"""Calls that carry no properties."""
_PATTERN_BYTES = 1_000_000
_Unexpected = ValidationErrorKind.AdditionalProperties | ValidationErrorKind.UnevaluatedProperties
_MAX_POINTER = 8
_REMEMBERED = 1024
_Path = tuple[str | int, ...]
_TYPES = "array, boolean, integer, null, number, object, string"


class Violation(NamedTuple):
    """`event` is a name of the plan, or empty for an unplanned event. `keyword`: what of the schema does not hold, or
    `unplanned_event`, `unplanned_property`. `pointer` (RFC 6901): where, with `*` for what the plan does not name."""

    event: str
    action: str
    keyword: str
    pointer: str = ""

    @property
    def reason(self) -> str:
        """As dead letters have it: `schema_type:/revenue`."""
        if self.keyword in (UNPLANNED_EVENT, UNPLANNED_PROPERTY):
            return self.keyword
        return f"schema_{self.keyword}:{self.pointer or '/'}"


Checked = tuple[dict[str, Any], tuple[Violation, ...]]
"""The properties that remain, and what was wrong. A bare tuple: one is made for every event there is."""


def refusal(violations: tuple[Violation, ...]) -> str | None:
    """The reason an event with these is rejected for; None where it is accepted."""
    return next((v.reason for v in violations if v.action == "reject"), None)


class SchemaFault(ValueError):
    """A schema that cannot be used; `path` leads to what is wrong in it."""

    def __init__(self, path: _Path, message: str) -> None:
        self.path, self.message = path, message
        super().__init__(f"{pointer_of(path) or '/'}: {message}")


class Plan:
    """A tracking plan, ready to be asked."""

    def __init__(self, rules: Rules) -> None:
        plan = rules.tracking_plan
        self._unplanned_events = plan.unplanned_events
        self._known = known_events(rules)
        self._events = {name: _Event(name, planned, plan) for name, planned in plan.events.items()}

    def check(self, name: str, properties: dict[str, Any]) -> Checked:
        """The event's properties under the plan."""
        event = self._events.get(name)
        if event is not None:
            return event.check(properties)
        if self._unplanned_events == "allow" or name in self._known or name in UNCHECKED:
            return properties, ()
        return properties, (Violation("", self._unplanned_events, UNPLANNED_EVENT),)


class _Event:
    def __init__(self, name: str, planned: PlannedEvent, plan: TrackingPlan) -> None:
        self._name, self._action = name, planned.on_violation
        self._validator = compiled(planned.schema)
        self._required: tuple[str, ...] = ()
        if not _refers_to_itself(planned.schema):
            # asked apart, so that a property left out is never one that is missing, nor hides what else is wrong
            self._required = tuple(planned.schema.get("required", ()))
            self._validator = compiled({k: v for k, v in planned.schema.items() if k != "required"})
        self._names = frozenset(_names(planned.schema))
        self._unplanned = plan.unplanned_properties
        self._closed = None if self._unplanned == "allow" else compiled(_closed(planned.schema))
        self._violation = lru_cache(_REMEMBERED)(self._made)

    def check(self, properties: dict[str, Any]) -> Checked:
        found: list[Violation] = []
        if self._closed is not None and not _valid(self._closed, properties):
            found.append(Violation(self._name, self._unplanned, UNPLANNED_PROPERTY))
        found += [self._violation("required", (n,)) for n in self._required if n not in properties]
        if _valid(self._validator, properties):
            return properties, tuple(found)
        left = dict(properties)
        for _ in range(MAX_VIOLATIONS):
            fault = _first(self._validator, left)
            if fault is None:
                break
            found.append(self._violation(fault.keyword, fault.path))
            if left.keys().isdisjoint(fault.properties):
                break  # no property is wrong, but one is missing, or something with them all
            left = {name: value for name, value in left.items() if name not in fault.properties}
        else:
            left = left if _valid(self._validator, left) else {}
        return left if self._action == "drop" else properties, tuple(found)

    def _made(self, keyword: str, path: _Path) -> Violation:
        told = tuple(part if part in self._names else "*" for part in path[:_MAX_POINTER])
        return Violation(self._name, self._action, keyword, pointer_of(told))


def compiled(schema: Mapping[str, Any]) -> Draft202012Validator:
    """The schema as a value that can be asked. `SchemaFault` where it is none, or refers to another document."""
    dialect = schema.get("$schema", DIALECT)
    if str(dialect).rstrip("#") != DIALECT:
        raise SchemaFault(("$schema",), f"the dialect is draft 2020-12 ({DIALECT}), not {dialect!r}")
    for path, target in _references(schema, ()):
        if not target.startswith("#"):
            raise SchemaFault(path, f"{target!r} is another document, and none is fetched; write it under $defs")
    try:
        return Draft202012Validator(
            dict(schema),
            pattern_options=RegexOptions(size_limit=_PATTERN_BYTES),
            validate_formats=True,
            ignore_unknown_formats=False,
            offline=True,
        )
    except ValidationError as error:
        raise SchemaFault(tuple(error.instance_path), _explained(error)) from error
    except ValueError as error:
        raise SchemaFault((), str(error).partition("\n")[0]) from error


def pointer_of(path: _Path) -> str:
    """RFC 6901."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _explained(error: ValidationError) -> str:
    last = error.instance_path[-1] if error.instance_path else ""
    if last == "type":
        return f"expected one of {_TYPES}, or a list of them"
    if last == "pattern" or (len(error.instance_path) > 1 and error.instance_path[-2] == "patternProperties"):
        return "no regular expression of linear time: look-around and back-references are not taken, nor huge repeats"
    if last == "format":
        return "there is no such format in JSON Schema; there are date-time, date, time, email, uri, uuid and others"
    return error.message.partition("\n")[0]


def _references(schema: Any, path: _Path) -> Iterator[tuple[_Path, str]]:
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield (*path, key), value
            elif key not in ("const", "enum", "default", "examples"):
                yield from _references(value, (*path, key))
    elif isinstance(schema, list):
        for number, value in enumerate(schema):
            yield from _references(value, (*path, number))


def _refers_to_itself(schema: Mapping[str, Any]) -> bool:
    anchored = "$anchor" in schema or "$dynamicAnchor" in schema
    return anchored or any(target in ("#", "#/") for _, target in _references(schema, ()))


def _names(schema: Any) -> Iterator[str]:
    """The names of properties that a schema names anywhere."""
    if isinstance(schema, Mapping):
        for keyword in ("properties", "required", "dependentRequired"):
            yield from map(str, schema.get(keyword) or ())
        for value in schema.values():
            yield from _names(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _names(value)
        yield from (value for value in schema if isinstance(value, str))


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Holds where every property is one the schema names."""
    named = dict.fromkeys((*schema.get("required", ()), *schema.get("properties", {})), True)
    patterns = dict.fromkeys(schema.get("patternProperties", {}), True)
    return {"properties": named, "patternProperties": patterns, "additionalProperties": False}


def _valid(validator: Draft202012Validator, properties: dict[str, Any]) -> bool:
    try:
        return validator.is_valid(properties)
    except ValueError:
        return False  # nested deeper than the library compares


class _Fault(NamedTuple):
    """One violation: where it is, and in which of the event's properties."""

    keyword: str
    path: _Path
    properties: frozenset[str]


def _first(validator: Draft202012Validator, properties: dict[str, Any]) -> _Fault | None:
    """One at a time: the library finds all there are at once, and a body made for it has thousands."""
    try:
        validator.validate(properties)
    except ValidationError as error:
        kind, path = error.kind, tuple(error.instance_path)
        wrong = {str(path[0])} if path else set()
        if isinstance(kind, ValidationErrorKind.Required):
            path = (*path, kind.property)
        elif not path and isinstance(kind, _Unexpected):
            wrong = set(kind.unexpected)
        elif not path and isinstance(kind, ValidationErrorKind.PropertyNames):
            wrong = {str(kind.error.instance)}
        return _Fault(kind.name, path, frozenset(wrong))
    except ValueError:
        return _Fault("depth", (), frozenset(properties))  # nested deeper than the library tells of
    return None
