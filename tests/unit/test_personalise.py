"""What templates may say, may cost, and are told before they are sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notifier.domain.liquid_environment import MAX_OUTPUT_BYTES
from services.notifier.domain.personalise import (
    Aborted,
    Rendered,
    Unrenderable,
    chain,
    compile_templates,
    render,
)
from services.notifier.domain.template_check import analyse, analyse_campaign
from shared.contracts.rules import Campaign, StageTrigger, Template

KNOWN = {"user.city": True, "user.name": False, "alert.event": False, "alert.parts": True}
INSTANT = "2026-01-02T03:04:05.678Z"


def campaign(templates: dict[str, tuple[str, str]], locale: str = "en") -> Campaign:
    return Campaign(
        "c", "C", StageTrigger(["x"]), {name: Template(*texts) for name, texts in templates.items()}, locale=locale
    )


def shown(title: str, body: str = "b", **variables: Any) -> Rendered | Aborted | Unrenderable:
    return render(compile_templates(campaign({"en": (title, body)})), "en", variables)


@pytest.mark.parametrize(
    ("locale", "title"),
    [
        ("fr-CA", "ca"),
        ("fr_CA", "ca"),
        ("FR-ca", "ca"),
        ("fr-BE", "fr"),
        ("fr", "fr"),
        ("de-AT", "en"),
        (None, "en"),
        ("", "en"),
        ("en-US", "en"),
    ],
)
def test_a_locale_falls_back_to_its_parent_and_then_to_the_campaigns(locale: str | None, title: str) -> None:
    compiled = compile_templates(campaign({"fr-CA": ("ca", "b"), "fr": ("fr", "b"), "en": ("en", "b")}, "en-GB"))
    assert render(compiled, locale, {}) == Rendered(title, "b")


def test_a_chain_goes_from_the_region_to_the_language() -> None:
    assert chain("zh-Hant-TW") == ("zh-hant-tw", "zh-hant", "zh")


def test_a_campaign_without_its_own_locale_is_refused() -> None:
    with pytest.raises(ValueError, match="own locale de"):
        compile_templates(campaign({"en": ("t", "b")}, "de"))


def test_a_syntax_error_names_campaign_and_locale() -> None:
    with pytest.raises(ValueError, match="campaign c, locale fr"):
        compile_templates(campaign({"en": ("t", "b"), "fr": ("{{ x", "b")}))


def test_the_author_can_abort_a_message_with_a_reason() -> None:
    """A block that does nothing but abort prints nothing, and must run all the same."""
    body = "{% if user.orders == 0 %} {% abort_message('no orders') %} {% endif %}hello"
    assert shown("t", body, user={"orders": 0}) == Aborted("no orders")
    assert shown("t", body, user={"orders": 1}) == Rendered("t", "hello")
    assert shown("t", '{% abort_message "x" %}') == Aborted("x")
    assert shown("t", "{% abort_message %}") == Aborted("")


def test_a_title_is_one_line_and_both_are_free_of_control_characters() -> None:
    assert shown("a\r\n b\x00\tc\x1b", "one \r\n\n\n\ntwo\x07\n") == Rendered("a b c", "one\n\ntwo")


@given(st.text(), st.text())
def test_nothing_but_text_reaches_a_provider(title: str, body: str) -> None:
    """Variables come from phones and weather offices; whatever they hold, the answer is one line and encodable."""
    answer = shown("T {{ a }}", "B {{ b }}", a=title, b=body)
    if isinstance(answer, Rendered):
        assert answer.title.isprintable() or all(ord(c) >= 32 and c != "\x7f" for c in answer.title)
        assert "\n" not in answer.title
        assert all(ord(c) >= 32 or c == "\n" for c in answer.body)
        assert len((answer.title + answer.body).encode()) <= MAX_OUTPUT_BYTES


@pytest.mark.parametrize(
    "body",
    [
        "{% for i in (1..1000000000) %}x{% endfor %}",
        "{% for i in (1..900) %}{% for j in (1..900) %}x{% endfor %}{% endfor %}",
        "{% assign a = 'xxxxxxxx' %}{% for i in (1..900) %}{% assign a = a | append: a %}{% endfor %}",
        "{{ (1..1000000000) | join: ',' }}",
        "{% assign a = 'x' %}" + "{% assign a = a | append: a %}" * 13 + "{{ a | replace: '', a | replace: '', a }}",
        "{% assign a = 'x' %}" + "{% assign a = a | append: a %}" * 12 + "{{ a | split: '' | join: a }}",
        "{{ long }}",
    ],
)
def test_no_template_can_use_up_a_worker(body: str) -> None:
    """Each of these would take gigabytes or hours without a limit; here it is an answer within moments."""
    assert isinstance(shown("t", body, long="x" * 10_000), Unrenderable)


@pytest.mark.parametrize(
    "body",
    ["{{ 1 | divided_by: 0 }}", "{{ 'x' | date: '%Y' }}", "{{ 'now' | date: '%Y' }}", "{{ 'x' | frob }}"],
)
def test_a_failing_template_is_an_answer_not_an_error(body: str) -> None:
    assert isinstance(shown("t", body), Unrenderable)


def test_an_empty_message_is_not_sent() -> None:
    assert isinstance(shown("{{ nothing }}", " \n "), Unrenderable)


def test_dates_are_shown_in_the_zone_they_are_given_never_in_the_servers() -> None:
    body = "{{ at | date: '%H:%M' }} {{ at | date: '%H:%M', 'America/New_York' }} {{ none | date: '%H' }}"
    assert shown("t", body, at=INSTANT) == Rendered("t", "03:04 22:04")


def test_the_clock_cannot_be_read_from_a_template() -> None:
    """A rendering that asked for the time would differ between a plan and its repetition after a crash."""
    assert shown("t", "[{{ now }}{{ today }}]") == Rendered("t", "[]")


@pytest.mark.parametrize(
    ("source", "codes"),
    [
        ("{{ user.name }} {{ alert.event | upcase }}", []),
        ("{{ user.city }}", ["needs_default"]),
        ("{{ user.city | default: 'you' }}", []),
        ("{{ user.city | upcase | default: 'you' }}", []),
        ("{% if user.city %}{{ user.city }}{% endif %}", []),
        ("{% if user.city and user.name %}{{ user.city | upcase }}{% endif %}", []),
        ("{% if user.city or user.name %}{{ user.city }}{% endif %}", ["needs_default"]),
        ("{% if user.city %}x{% else %}{{ user.city }}{% endif %}", ["needs_default"]),
        ("{% if user.name %}x{% elsif user.city %}{{ user.city }}{% endif %}", []),
        ("{% assign c = user.city %}{{ c }}", ["needs_default"]),
        ("{{ user.name | append: user.city }}", ["needs_default"]),
        ("{% for p in alert.parts %}{{ p }} {{ forloop.index }}{% endfor %}", []),
        ("{{ nope }}{{ user.shoe_size }}", ["unknown_variable", "unknown_variable"]),
        ("{{ now }}", ["unknown_variable"]),
        ("{{ user.name | frob }}", ["unknown_filter"]),
        ("{{ user.name", ["syntax"]),
        ("{% include 'secrets' %}", ["syntax"]),
        ("{% render 'secrets' %}", ["syntax"]),
        ("{% abort_message 3 %}", ["syntax"]),
    ],
)
def test_a_template_is_judged_when_it_is_saved(source: str, codes: list[str]) -> None:
    assert [problem.code for problem in analyse(source, KNOWN)] == codes


def test_a_problem_tells_where_it_is() -> None:
    found = analyse_campaign(campaign({"en": ("t", "a\nb\n{{ nope }}")}), KNOWN)
    assert [(p.where, p.line, p.code) for p in found] == [("en.body", 3, "unknown_variable")]


@given(st.sampled_from(["Ann", "", None]), st.sampled_from(["Oslo", "", None]))
def test_a_template_without_problems_leaves_no_hole(name: str | None, city: str | None) -> None:
    """The two halves agree: what `analyse` lets pass shows its fallback when the variable is missing."""
    source = "Hi {{ user.city | default: 'you' }}!"
    assert analyse(source, KNOWN) == []
    answer = shown("t", source, user={"name": name, "city": city})
    assert answer == Rendered("t", f"Hi {city or 'you'}!")
