"""How is an inferred tracking plan written, so that a pack can take it in and a person can judge it?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from services.ingest.domain.inferring import Inference, Shape

_PLAIN = re.compile(r"[A-Za-z$][A-Za-z0-9_$]*(?: [A-Za-z0-9_$]+)*")
_NOT_TEXT = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
_ORDER = ("object", "array", "string", "number", "integer", "boolean", "null")


def written(inference: Inference, heading: list[str]) -> str:
    """The plan as YAML, with what was seen in comments."""
    lines = [f"# {line}" for line in heading]
    lines += [f"# Left out: {line}." for line in inference.left_out()]
    lines += ["tracking_plan:"]
    events = inference.events()
    if not events:
        return "\n".join([*lines, "  events: {}", ""])
    lines.append("  events:")
    for name, shape in events.items():
        lines += [f"    {_quoted(name)}:  # {shape.count:,} events", "      on_violation: flag"]
        schema = _object(shape, inference.least)
        lines += ["      schema:", *(f"        {line}" for line in schema)] if schema else ["      schema: {}"]
    return "\n".join([*lines, ""])


def _object(shape: Shape, least: int) -> list[str]:
    objects = shape.types["object"]
    always = [name for name, inner in shape.properties.items() if inner.count == objects >= least]
    lines = [f"required: [{', '.join(map(_quoted, sorted(always)))}]"] if always else []
    if shape.properties:
        lines.append("properties:")
        for name, inner in sorted(shape.properties.items()):
            lines += [f"  {line}" for line in _property(name, inner, objects, least)]
    return lines


def _property(name: str, shape: Shape, of: int, least: int) -> Iterator[str]:
    within = list(_within(name, shape, least))
    share = "always" if shape.count == of else f"{shape.count:,} of {of:,}"
    seen = f"  # {'; '.join([share, *_numbers(name, shape)])}"
    if not within:
        yield f"{_quoted(name)}: {{{_said(name, shape)}}}{seen}"
        return
    yield f"{_quoted(name)}:{seen}"
    yield f"  {_said(name, shape)}"
    yield from (f"  {line}" for line in within)


def _within(name: str, shape: Shape, least: int) -> Iterator[str]:
    """What is said of an object's properties and an array's items."""
    yield from _object(shape, least)
    items = shape.items
    if items is not None and items.count:
        within = list(_within(name, items, least))
        if not within:
            yield f"items: {{{_said(name, items)}}}"
            return
        yield "items:"
        yield f"  {_said(name, items)}"
        yield from (f"  {line}" for line in within)


def _said(name: str, shape: Shape) -> str:
    enum = shape.enum(name)
    if enum:
        return f"enum: [{', '.join(map(_quoted, enum))}]"
    types = set(shape.types)
    if "number" in types:
        types.discard("integer")
    told = [_quoted(kind) for kind in _ORDER if kind in types]
    return f"type: {told[0] if len(told) == 1 else '[' + ', '.join(told) + ']'}"


def _numbers(name: str, shape: Shape) -> list[str]:
    span = shape.span(name)
    return [] if span is None else [f"{span[0]:.10g} to {span[1]:.10g}"]


def _quoted(text: str) -> str:
    plain = _PLAIN.fullmatch(text) and text.lower() not in _NOT_TEXT
    return text if plain else json.dumps(text, ensure_ascii=False)
