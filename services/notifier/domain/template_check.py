"""What is wrong with a template before anybody is sent it: syntax, unknown names, missing fallbacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import msgspec
from liquid import BoundTemplate, Node, RenderContext
from liquid.ast import ConditionalBlockNode
from liquid.builtin.expressions import FilteredExpression, Path
from liquid.builtin.expressions.logical import BooleanExpression, LogicalAndExpression
from liquid.builtin.tags.case_tag import CaseNode
from liquid.builtin.tags.for_tag import ForNode
from liquid.builtin.tags.if_tag import IfNode
from liquid.builtin.tags.unless_tag import UnlessNode
from liquid.exceptions import LiquidError
from liquid.expression import Expression
from liquid.static_analysis import Variable

from services.notifier.domain.liquid_environment import ENVIRONMENT
from shared.contracts.rules import Campaign


class Problem(msgspec.Struct, frozen=True):
    """One fault of a template; `line` counts from 1."""

    code: Literal["syntax", "unknown_variable", "unknown_filter", "needs_default"]
    message: str
    line: int
    where: str = ""


def analyse(source: str, known: Mapping[str, bool]) -> list[Problem]:
    """Faults of one Liquid source, in order of their place.

    `known` maps each variable's dotted path to whether it may be missing. One that may is fine behind
    `| default:`, inside `{% if it %}`, in a condition, or as what `for` runs over; elsewhere it would leave
    a hole in the text.
    """
    try:
        template = ENVIRONMENT.from_string(source)
        analysis = template.analyze()
    except LiquidError as error:
        at = error.context()
        return [Problem("syntax", str(error.message), at[0] if at else 1)]
    found: list[tuple[int, Problem]] = []

    def report(start: int, code: Literal["unknown_variable", "unknown_filter", "needs_default"], message: str) -> None:
        found.append((start, Problem(code, message, source.count("\n", 0, start) + 1)))

    for name, spans in analysis.filters.items():
        if name not in ENVIRONMENT.filters:
            for span in spans:
                report(span.index, "unknown_filter", f"there is no filter {name!r}")
    covered = set(_covered(template))
    for variable in (v for uses in analysis.globals.values() for v in uses):
        path, may_be_missing = _lookup(variable, known)
        start = variable.span.index
        if may_be_missing is None:
            report(start, "unknown_variable", f"there is no variable {path!r}; known: {', '.join(sorted(known))}")
        elif may_be_missing and start not in covered:
            report(start, "needs_default", f"{path!r} may be missing: add `| default: '…'` or an `if`")
    return [problem for _, problem in sorted(found, key=lambda f: f[0])]


def analyse_campaign(campaign: Campaign, known: Mapping[str, bool]) -> list[Problem]:
    """`analyse` for every template; `where` is `locale.title` or `locale.body`."""
    return [
        msgspec.structs.replace(problem, where=f"{locale}.{part}")
        for locale, template in campaign.templates.items()
        for part, source in (("title", template.title), ("body", template.body))
        for problem in analyse(source, known)
    ]


def _lookup(variable: Variable, known: Mapping[str, bool]) -> tuple[str, bool | None]:
    """The variable's path, and whether it may be missing (None: it is not known at all)."""
    parts = [str(s) for s in variable.segments if isinstance(s, str)]
    path = str(variable)
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in known:
            return path, known[prefix]
    whole = ".".join(parts) + "."
    return path, False if any(name.startswith(whole) for name in known) else None


def _covered(template: BoundTemplate) -> Iterator[int]:
    """Where in the source variables stand that may be missing without harm."""
    yield from _walk(template, template.nodes, frozenset())


def _walk(template: BoundTemplate, nodes: Iterable[Node], guards: frozenset[str]) -> Iterator[int]:
    for node in nodes:
        condition = isinstance(node, IfNode | UnlessNode | ConditionalBlockNode | CaseNode | ForNode)
        for expression in node.expressions():
            yield from _harmless(expression, guards, condition)
        if isinstance(node, IfNode):
            yield from _walk(template, [node.consequence], guards | _asserted(node.condition))
            yield from _walk(template, node.alternatives, guards)
            yield from _walk(template, [node.default] if node.default else [], guards)
        elif isinstance(node, ConditionalBlockNode):
            yield from _walk(template, [node.block], guards | _asserted(node.expression))
        else:
            yield from _walk(template, node.children(RenderContext(template)), guards)


def _harmless(expression: Expression, guards: frozenset[str], condition: bool) -> Iterator[int]:
    if isinstance(expression, Path) and (condition or str(expression) in guards):
        yield expression.token.start_index
    if isinstance(expression, FilteredExpression) and any(f.name == "default" for f in expression.filters or ()):
        yield expression.left.token.start_index
    for child in expression.children():
        yield from _harmless(child, guards, condition)


def _asserted(condition: Expression) -> frozenset[str]:
    """Paths that are there when the condition holds: the condition itself, or each side of its `and`s."""
    if isinstance(condition, BooleanExpression):
        return _asserted(condition.expression)
    if isinstance(condition, LogicalAndExpression):
        return _asserted(condition.left) | _asserted(condition.right)
    return frozenset({str(condition)}) if isinstance(condition, Path) else frozenset()
