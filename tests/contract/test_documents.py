"""Do the documents speak of files, functions, commands and targets that exist?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from services.cli import app
from shared.contracts.topics import SPECS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    "README.md", "README.fr.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/operations.md", "docs/app-developers.md"
]  # fmt: skip


def read(name: str) -> str:
    return (ROOT / name).read_text()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_named_in_a_document_exist(document: str) -> None:
    """A reader who looks where the text points must find something."""
    text = read(document)
    named = set(re.findall(r"`((?:shared|services|packs|deploy|tests|docs)/[\w./-]*)`", text))
    named |= set(re.findall(r"`([\w-]+\.(?:md|yaml|toml))`", text)) - {"pom.xml"}
    named |= {target for target in re.findall(r"\]\(([\w./-]+)\)", text) if not target.startswith("http")}
    assert not {path for path in named if not (ROOT / path).exists()}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_named_in_a_document_exist(document: str) -> None:
    text = read(document)
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b(?=[` \n])", only_code(text))) <= targets
    commands = set(commands_of(typer.main.get_command(app)))
    for words in re.findall(r"\bperennial ((?:[a-z]+ ?)+)", only_code(text)):
        first, *rest = words.split()
        assert first in commands, words
        if rest and any(command.startswith(f"{first} ") for command in commands) and first != "demo":
            assert f"{first} {rest[0]}" in commands, words


def test_the_way_of_one_event_passes_at_most_six_files_and_its_functions() -> None:
    """The first thing a newcomer reads; functions that were renamed would lose them."""
    way = read("ARCHITECTURE.md").partition("## The way of one event")[2].partition("\n## ")[0]
    steps = re.findall(r"^\d\. \*\*`(services/[\w/]+\.py)`\*\* — (.*?)(?=^\d\. |^\n|\Z)", way, re.MULTILINE | re.DOTALL)
    assert 4 <= len(steps) <= 6
    for path, text in steps:
        functions = re.findall(r"`(\w+)\(\)`", text)
        assert functions, path
        code = read(path)
        assert not [name for name in functions if f"def {name}(" not in code], path


def test_metrics_named_in_the_documents_exist() -> None:
    page = read("docs/metrics.md")
    for document in DOCUMENTS:
        assert not {name for name in re.findall(r"`(perennial_\w+)`", read(document)) if f"`{name}`" not in page}


def test_the_french_readme_has_the_same_commands() -> None:
    """Comments are translated; what is typed must be the same."""
    english, french = (list(blocks(read(name))) for name in ("README.md", "README.fr.md"))
    assert english
    assert french == english
    assert headings("README.md") == headings("README.fr.md")


def test_the_readme_names_every_public_topic() -> None:
    for name in ("README.md", "README.fr.md"):
        rows = set(re.findall(r"^\| `([\w.]+\.v\d+)` \|", read(name), re.MULTILINE))
        assert rows == {spec.topic.value for spec in SPECS if spec.public}


@pytest.mark.parametrize("name", ["README.md", "README.fr.md"])
def test_python_in_the_readme_compiles(name: str) -> None:
    for code in re.findall(r"```python\n(.*?)```", read(name), re.DOTALL):
        compile(code, name, "exec")


def blocks(text: str) -> Iterator[str]:
    """Code blocks without comments and spaces at line ends."""
    for code in re.findall(r"```\w+\n(.*?)```", text, re.DOTALL):
        yield "\n".join(re.sub(r"(^|  )# .*", "", line).rstrip() for line in code.splitlines())


def headings(name: str) -> list[int]:
    return [
        len(marks)
        for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", read(name), flags=re.DOTALL), re.MULTILINE)
    ]


def only_code(text: str) -> str:
    """What stands in backticks or code blocks."""
    return "\n".join([*re.findall(r"```\w+\n(.*?)```", text, re.DOTALL), *re.findall(r"`([^`\n]+)`", text)])


def commands_of(command: object, prefix: str = "") -> Iterator[str]:
    for name, inner in getattr(command, "commands", {}).items():
        yield f"{prefix}{name}"
        yield from commands_of(inner, f"{prefix}{name} ")
