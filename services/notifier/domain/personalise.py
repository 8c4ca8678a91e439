"""What a push says to one user: Liquid in their language, or the reason why it says nothing."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

import msgspec
from liquid import BoundTemplate
from liquid.exceptions import LiquidError

from services.notifier.domain.liquid_environment import ENVIRONMENT, MAX_OUTPUT_BYTES, AbortMessage
from shared.contracts.rules import Campaign


class Compiled(msgspec.Struct, frozen=True):
    """A campaign version's templates, parsed once: locale in lower case → (title, body). `personal`: some of them name
    `user`, so that of two who are told of the same thing in one language each may be told something else."""

    templates: dict[str, tuple[BoundTemplate, BoundTemplate]]
    fallback: tuple[str, ...]
    personal: bool


class Rendered(msgspec.Struct, frozen=True):
    title: str
    body: str


class Aborted(msgspec.Struct, frozen=True):
    """The author's template said `abort_message`."""

    reason: str


class Unrenderable(msgspec.Struct, frozen=True):
    """The template failed on these variables: a limit, a filter, or nothing to show."""

    reason: str


Text = Rendered | Aborted | Unrenderable


def chain(locale: str) -> tuple[str, ...]:
    """`fr-CA` → (`fr-ca`, `fr`); underscores count as hyphens."""
    parts = locale.replace("_", "-").lower().split("-")
    return tuple("-".join(parts[:n]) for n in range(len(parts), 0, -1))


def compile_templates(campaign: Campaign) -> Compiled:
    """Parse every locale. ValueError names the locale and the fault; a campaign without a template in its
    own locale (or a parent of it) is one, as other locales fall back to it."""
    templates: dict[str, tuple[BoundTemplate, BoundTemplate]] = {}
    for locale, template in campaign.templates.items():
        try:
            parsed = (ENVIRONMENT.from_string(template.title), ENVIRONMENT.from_string(template.body))
        except LiquidError as error:
            raise ValueError(f"campaign {campaign.id}, locale {locale}: {error.message}") from error
        templates[chain(locale)[0]] = parsed
    fallback = tuple(name for name in chain(campaign.locale) if name in templates)
    if not fallback:
        raise ValueError(f"campaign {campaign.id} has no template for its own locale {campaign.locale}")
    personal = any("user" in template.global_variables() for both in templates.values() for template in both)
    return Compiled(templates, fallback, personal)


def render(compiled: Compiled, locale: str | None, variables: Mapping[str, Any]) -> Text:
    """Title and body in the first locale of: the user's, its parents, the campaign's.

    A template is data: whatever it raises is an answer, never an error of ours. The title is one line; both
    are free of control characters, so that nothing but text reaches a provider.
    """
    wanted = (*chain(locale), *compiled.fallback) if locale else compiled.fallback
    title_of, body_of = next(compiled.templates[name] for name in wanted if name in compiled.templates)
    try:
        title, body = _one_line(title_of.render(variables)), _lines(body_of.render(variables))
    except AbortMessage as abort:
        return Aborted(abort.reason)
    except LiquidError as error:
        return Unrenderable(str(error.message))
    except Exception as error:  # noqa: BLE001 - any failure inside an author's template is that template's
        return Unrenderable(f"{type(error).__name__}: {error}"[:200])
    if not title and not body:
        return Unrenderable("title and body are empty")
    if len(title.encode()) + len(body.encode()) > MAX_OUTPUT_BYTES:
        return Unrenderable(f"title and body exceed {MAX_OUTPUT_BYTES} bytes")
    return Rendered(title, body)


def _printable(text: str) -> str:
    """Without control characters (Cc) and what UTF-8 cannot carry (Cs)."""
    if text.isprintable():
        return text
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs"))


def _one_line(text: str) -> str:
    return _printable(" ".join(text.split()))


def _lines(text: str) -> str:
    """Lines stay, each stripped; blank lines within the text stay as one."""
    lines = [" ".join(line.split()) for line in _printable("\n".join(text.splitlines())).split("\n")]
    kept = [line for n, line in enumerate(lines) if line or (n and lines[n - 1])]
    return "\n".join(kept).strip()
