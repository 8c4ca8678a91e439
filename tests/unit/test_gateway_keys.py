"""Whose write key a header names, and what a kept copy is good for."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from services.ingest.gateway.keys import KeyBook, PostgresKeys, key_in_header
from shared.process.http import Health


def basic(text: bytes) -> bytes:
    return b"Basic " + base64.b64encode(text)


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (basic(b"demo:"), "demo"),
        (basic(b"demo"), "demo"),
        (basic(b"demo:secret:x"), "demo"),
        (basic(b"demo:").replace(b"Basic", b"bASIC"), "demo"),
        (basic(b"demo:").rstrip(b"="), "demo"),
        (b"Basic   " + base64.b64encode(b"demo:"), "demo"),
        (b"Bearer demo", "demo"),
        (basic(b":"), ""),
        (b"Basic", ""),
        (b"Basic !!!", ""),
        (b"Digest demo", ""),
        (b"demo", ""),
        (basic(b"\xff:"), "\ufffd"),
    ],
)
def test_the_key_in_a_header(header: bytes, key: str) -> None:
    assert key_in_header(header) == key


def test_a_revoked_key_is_forgotten_also_where_its_header_was_remembered() -> None:
    book = KeyBook.of(app="demo")
    assert book.source_by_header(basic(b"demo:")) == "app"
    assert book.replace({}) is True
    assert book.source_by_header(basic(b"demo:")) is None


def test_a_book_that_was_never_fed_knows_that_it_knows_nothing() -> None:
    """Otherwise a gateway that starts without Postgres would tell every app that its key is wrong, and SDKs
    drop events on 401."""
    assert KeyBook().known is False
    assert KeyBook({}).known is True


def test_the_kept_copy_serves_until_postgres_answers(tmp_path: Path) -> None:
    kept = tmp_path / "gateway" / "keys.json"
    first = PostgresKeys(KeyBook(), "", kept, 2.0, Health())
    first.load_kept()
    first._keep({"0" * 64: "app"})
    assert kept.stat().st_mode & 0o777 == 0o600
    book = KeyBook()
    PostgresKeys(book, "", kept, 2.0, Health()).load_kept()
    assert book.known and book._sources == {"0" * 64: "app"}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a":1}', b"\xff"])
def test_a_damaged_copy_is_no_copy(tmp_path: Path, content: bytes) -> None:
    kept = tmp_path / "keys.json"
    kept.write_bytes(content)
    book = KeyBook()
    PostgresKeys(book, "", kept, 2.0, Health()).load_kept()
    assert book.known is False
