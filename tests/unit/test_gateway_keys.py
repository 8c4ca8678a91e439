"""Whose write key a header names, and what a kept copy is good for."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from services.ingest.domain.allowance import BURST_SECONDS, Allowance
from services.ingest.gateway.keys import KeyBook, KeyFacts, key_in_header
from services.ingest.gateway.keys_feed import KeysFeed
from services.ingest.gateway.settings import GatewaySettings
from shared.data.keys import key_hash
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


def facts(**keys: str) -> dict[str, KeyFacts]:
    return {key_hash(key): KeyFacts(source) for source, key in keys.items()}


def feed(book: KeyBook, kept: Path) -> KeysFeed:
    return KeysFeed(book, "", kept, GatewaySettings(), Health())


def test_a_revoked_key_is_forgotten_also_where_its_header_was_remembered() -> None:
    book = KeyBook.of(app="demo")
    found = book.by_header(basic(b"demo:"))
    assert found is not None and found.source == "app"
    assert book.replace({}) is True
    assert book.by_header(basic(b"demo:")) is None


def test_a_key_that_stays_goes_on_counting_when_others_change() -> None:
    book = KeyBook.of(app="demo")
    kept = book.by_key("demo")
    assert kept is not None
    kept.events = 3
    assert book.replace(facts(app="demo", other="x"))
    assert book.by_key("demo") is kept
    assert book.used() == {key_hash("demo"): (3, 0)}
    assert book.used() == {}, "what was told is not told again"


def test_a_book_that_was_never_fed_knows_that_it_knows_nothing() -> None:
    """Otherwise a gateway that starts without Postgres would tell every app that its key is wrong, and SDKs
    drop events on 401."""
    assert KeyBook().known is False
    assert KeyBook({}).known is True


def test_the_kept_copy_serves_until_postgres_answers(tmp_path: Path) -> None:
    kept = tmp_path / "gateway" / "keys.json"
    first = feed(KeyBook(), kept)
    first.load_kept()
    limited = {"0" * 64: KeyFacts("app", 20)}
    first._keep(limited)
    assert kept.stat().st_mode & 0o777 == 0o600
    book = KeyBook()
    feed(book, kept).load_kept()
    assert book.known and book.facts() == limited


def test_a_copy_that_holds_only_sources_is_read(tmp_path: Path) -> None:
    kept = tmp_path / "keys.json"
    kept.write_text(json.dumps({"0" * 64: "app"}))
    book = KeyBook()
    feed(book, kept).load_kept()
    assert book.facts() == {"0" * 64: KeyFacts("app")}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a":1}', b"\xff"])
def test_a_damaged_copy_is_no_copy(tmp_path: Path, content: bytes) -> None:
    kept = tmp_path / "keys.json"
    kept.write_bytes(content)
    book = KeyBook()
    feed(book, kept).load_kept()
    assert book.known is False


def test_what_an_allowance_lets_through_over_time_is_its_rate() -> None:
    """Whatever the sizes of the batches: over a minute, the rate and one burst, and the batch that overdraws it."""
    for size in (1, 7, 100, 900):
        allowance, passed = Allowance(50, 0.0), 0
        for tick in range(6000):
            if not allowance.take(size, tick / 100):
                passed += size
        assert 50 * 60 <= passed <= 50 * 60 + 50 * BURST_SECONDS + size, size


def test_who_waits_as_long_as_told_passes() -> None:
    allowance = Allowance(10, 0.0)
    assert allowance.take(500, 0.0) == 0.0
    seconds = allowance.take(1, 0.0)
    assert 48 < seconds < 49
    assert allowance.take(1, seconds - 0.2) > 0
    assert allowance.take(1, seconds) == 0.0


def test_a_throttled_source_is_held_back_until_it_is_not() -> None:
    book = KeyBook.of(app="demo", other="fine")
    book.throttle(["app"], 1.0)
    held, free = book.by_key("demo"), book.by_key("fine")
    assert held is not None and free is not None and held.limited and not free.limited
    assert held.over(50) is None
    refused = held.over(1)
    assert refused is not None and (refused.status, refused.code) == (429, "too_many_rejects")
    assert refused.retry_seconds >= 48
    book.throttle(["app"], 1.0)
    assert held.over(1) is not None, "being told again is no pardon"
    book.throttle([], 1.0)
    assert not held.limited
