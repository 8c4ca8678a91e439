"""Which Liquid a marketer may write: tags, filters, and how much work one template may cause.

Nothing here reads the clock, a file or another template: a rendering is decided by its variables alone.
Instants come as RFC 3339 text; `date` shows them in the zone it is given, never in the server's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO
from zoneinfo import ZoneInfo

from liquid import Environment, Node, RenderContext, Token, TokenStream
from liquid.exceptions import FilterError, LiquidSyntaxError
from liquid.tag import Tag
from liquid.token import TOKEN_EXPRESSION, TOKEN_TAG
from liquid.undefined import is_undefined

MAX_OUTPUT_BYTES = 3_500
"""Of a title and a body together; a push may have 4,096 bytes with its data (FCM and APNs alike)."""

MAX_VALUE_CHARS = 16_384
"""Of what goes into one filter."""

MAX_PRODUCT_CHARS = 1_000_000
"""Of what may come out of one."""

# fmt: off
FILTERS = frozenset(
    {
        "abs", "append", "at_least", "at_most", "capitalize", "ceil", "date", "default", "divided_by", "downcase",
        "first", "floor", "join", "last", "lstrip", "minus", "modulo", "plus", "prepend", "remove", "remove_first",
        "replace", "replace_first", "round", "rstrip", "size", "slice", "split", "squish", "strip", "strip_html",
        "strip_newlines", "times", "truncate", "truncatewords", "upcase", "url_encode",
    }
)
TAGS = frozenset(
    {
        "assign", "capture", "case", "echo", "for", "break", "continue", "if", "unless", "comment", "#", "content",
        "output", "illegal",
    }
)
# fmt: on
"""Besides `abort_message`; `content`, `output` and `illegal` are the library's names for text and `{{ }}`."""

_MULTIPLYING = frozenset({"replace", "join"})

_REASON = re.compile(r"""\s*\(?\s*(?:(['"])(?P<reason>.*?)\1)?\s*\)?\s*""", re.DOTALL)


class AbortMessage(Exception):
    """The template decided that this user gets no push; `reason` is the author's."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class AbortNode(Node):
    __slots__ = ("reason",)

    def __init__(self, token: Token, reason: str) -> None:
        super().__init__(token)
        self.reason = reason
        # A block that only aborts must not be skipped as blank.
        self.blank = False

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        raise AbortMessage(self.reason)


class AbortTag(Tag):
    """`{% abort_message('reason') %}`, with or without parentheses, and with or without a reason."""

    name = "abort_message"
    block = False

    def parse(self, stream: TokenStream) -> Node:
        token = stream.eat(TOKEN_TAG)
        reason = ""
        if stream.current.kind == TOKEN_EXPRESSION:
            found = _REASON.fullmatch(stream.current.value)
            if found is None:
                raise LiquidSyntaxError("abort_message takes one quoted reason", token=stream.current)
            reason = found["reason"] or ""
        return AbortNode(token, reason)


def _date(value: object, form: object = "%Y-%m-%d", zone: object = "") -> str:
    """An RFC 3339 instant in strftime's form, in an IANA zone (default: the offset it was given in)."""
    if is_undefined(value) or value is None or value == "":
        return ""
    if not isinstance(value, str):
        raise FilterError(f"date expects RFC 3339 text, not {type(value).__name__}", token=None)
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        if zone and isinstance(zone, str):
            moment = moment.astimezone(ZoneInfo(zone))
        return moment.strftime(str(form))
    except (ValueError, KeyError, OSError) as error:
        raise FilterError(f"date cannot show {value[:40]!r}: {error}", token=None) from error


def _size(value: object) -> int:
    if isinstance(value, str | range):
        return len(value)
    if isinstance(value, list | tuple):
        return len(value) + sum(len(v) if isinstance(v, str) else 1 for v in value)
    return 1


def _bounded(name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse a filter's work before it is done: too long a value, or one of the two filters that multiply
    their arguments' lengths (the others at most add them) asked for more than `MAX_PRODUCT_CHARS`."""

    def bounded(value: Any, *arguments: Any, **options: Any) -> Any:
        sizes = [_size(v) for v in (value, *arguments)]
        product = (sizes[0] + 1) * (max(sizes[1:], default=0) + 1) if name in _MULTIPLYING else 0
        if sum(sizes) > MAX_VALUE_CHARS or product > MAX_PRODUCT_CHARS:
            raise FilterError(f"{name} would make too long a text", token=None)
        return apply(value, *arguments, **options)

    if hasattr(apply, "with_environment"):
        setattr(bounded, "with_environment", True)  # noqa: B010 - python-liquid's own way to ask for the environment
    return bounded


class PushEnvironment(Environment):
    """Strict Liquid without includes, and with a bound on every kind of work."""

    context_depth_limit = 10
    block_nesting_limit = 10
    loop_iteration_limit = 1_000
    local_namespace_limit = 16_384
    output_stream_limit = MAX_OUTPUT_BYTES

    def setup_tags_and_filters(self, *, extra: bool = False) -> None:
        super().setup_tags_and_filters(extra=False)
        for name in [n for n in self.tags if n not in TAGS]:
            del self.tags[name]
        self.filters = {n: _bounded(n, _date if n == "date" else self.filters[n]) for n in sorted(FILTERS)}
        self.add_tag(AbortTag)


# `now` and `today` would read the clock.
ENVIRONMENT = PushEnvironment(strict_filters=True, globals={"now": None, "today": None})
