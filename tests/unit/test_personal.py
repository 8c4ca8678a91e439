"""Which texts are taken for an e-mail address or a telephone number, and which only look like one."""

from __future__ import annotations

import time

import pytest

from shared.contracts.personal import hidden, personal

NUMBERS = [
    "+1 (555) 123-4567", "+1 415 555 2671", "+1-415-555-2671", "+14155552671", "+1.415.555.2671", "+1 (415) 555.2671",
    "+33 6 12 34 56 78", "+33 (0)6 12 34 56 78", "+33.6.12.34.56.78", "+33612345678", "+(33) 6 12 34 56 78",
    "+44 20 7946 0958", "+49 (0) 30 123456", "+49 30/1234567", "+91-98765-43210", "+86 138 0013 8000", "+47 22 34 56 78",
    "+1 415 - 555 - 2671", "+1\u00a0415\u202f555\u20112671",
    "0033 6 12 34 56 78", "0044 20 7946 0958",
    "(415) 555-2671", "(415)555-2671", "415-555-2671", "415.555.2671", "415 555 2671", "1-800-555-0199",
    "1 (800) 555-0199",
    "06 12 34 56 78", "06.12.34.56.78", "06-12-34-56-78", "01\u00a042\u00a068\u00a053\u00a000",
    "020 7946 0958", "0161 496 0000",
]  # fmt: skip

NO_NUMBERS = [
    "2026-01-02", "2026-01-02 10:00", "2026-01-02 10:00:00", "2026-01-02T10:00:00Z", "2026-01-02T10:00:00.000+01:00",
    "2026-01-02 10:00:00 +0100", "2026-01-02 10:00 - 2026-01-03 11:00", "2026-01-02 - 2026-01-09", "02.01.2026 10:00",
    "02/01/2026 10:00", "01-02-2026 10:00:00", "01-02-2026 10", "2026 01 02 10 00", "20260102 100000", "10:00:00",
    "10:00", "06:12:34:56:78", "Fri, 02 Jan 2026 10:00:00 +0000", "2026-W01-5", "1767225600", "1767225600000",
    "1767225600000000", "1767225600.123", "1234567890", "4155552671", "0612345678", "33612345678", "12345678901234567",
    "2.1.0", "10.15.7 (19H2)", "115.0.5790.170", "Version 26.1 (17B100)", "1.2.3-20260102.1000", "192.168.100.200",
    "40.7128, -74.0060", "40.7128 -74.0060", "40.712776,-74.005974", "+40.7128-74.0060", "+40.712776-074.005974/",
    "+40.712776, -122.4194155", "+122.4194155", "+40.7128 74.0060", "40 42 46 N 74 00 22 W", "40°42′46″N 74°00′22″W",
    "ORD-2026-000123", "ORD-415-555-2671", "INV 2026/000123", "2026-000123", "#1000 2000 3000", "A-1234-5678-90",
    "4111 1111 1111 1111", "1Z 999 AA1 01 2345 6784", "978-3-16-148410-0", "123-45-6789",
    "123e4567-e89b-12d3-a456-426614174000", "12345678-1234-1234-1234-123456789012", "u-1234567-4155552671",
    "1,234,567.89", "1 234 567,89", "+5", "+0100", "+10 000", "5 10 15 20 25 30 35 40", "8 of 10", "555-2671", "",
]  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_a_telephone_number_is_found(text: str) -> None:
    assert personal(text)


@pytest.mark.parametrize("text", NUMBERS)
def test_a_telephone_number_is_found_among_other_words(text: str) -> None:
    """People write them into titles and notes, beside dates and other numbers."""
    for around in (
        "call {} now",
        "tel:{}",
        "({})",
        "{}.",
        "at 10:00, {}",
        "2026-01-02 {}",
        "{}, 2026-01-02",
        "{} 2 people",
    ):
        assert personal(around.format(text)), around


@pytest.mark.parametrize("text", [*NUMBERS, "ann@example.com", "a.b+c@mail.example.org"])
def test_it_is_hidden_and_what_stands_around_it_is_not(text: str) -> None:
    said = f"at 2026-01-02 10:00: call {text}, or {text}; see 3/17"
    # of a number that is known by its national part the country may stay
    assert hidden(said).replace("+1 …", "…") == "at 2026-01-02 10:00: call …, or …; see 3/17"


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_only_looks_like_one_is_not(text: str) -> None:
    """Rejecting an event for the date in it loses it: nobody posts it again."""
    assert not personal(text)
    assert not personal(f"since {text} or so")
    assert hidden(f"since {text} or so") == f"since {text} or so"


@pytest.mark.parametrize("text", ["ann@example.com", "write to a.b+c@mail.example.org today"])
def test_an_address_is_found(text: str) -> None:
    assert personal(text)


@pytest.mark.parametrize("text", ["a@b", "@home", "5 @ 3.50"])
def test_an_at_sign_alone_is_no_address(text: str) -> None:
    assert not personal(text)


@pytest.mark.parametrize(
    "part", ["+1 ", "+1(", "(415) ", "06 ", "00", "1", "+", "415-555-", "0 1 ", "+1.1 ", "001 1", "a@", "@a."]
)
def test_a_long_text_is_read_in_no_time(part: str) -> None:
    """Whoever posts could otherwise stop the consumer with one text of the size that is let in."""
    text = part * (32_768 // len(part))
    began = time.process_time()
    personal(text + "x")
    assert time.process_time() - began < 0.5
