"""What time the product has: real, or moved by a file, and never going back."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.process import clock
from shared.process.clock import Clock, iso, iso_or_none, month_of, parse_instant, write_clock


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-01-02T03:04:05.678Z", 1_767_323_045_678),
        ("2026-01-02T03:04:05.678+00:00", 1_767_323_045_678),
        ("2026-01-02T04:04:05.678+01:00", 1_767_323_045_678),
        ("2026-01-02T03:04:05.678", 1_767_323_045_678),
        ("2026-01-02", 1_767_312_000_000),
        ("1969-12-31T23:59:59.999Z", -1),
    ],
)
def test_instants_are_read(text: str, ms: int) -> None:
    assert parse_instant(text) == ms


@pytest.mark.parametrize("text", ["", "now", "2026-13-01", "25:00", "2026-02-30T00:00:00Z", "1767323045678000"])
def test_what_is_no_instant_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_instant(text)


@given(st.integers(0, 4_102_444_800_000))
def test_what_is_written_is_read_back_to_the_millisecond(ms: int) -> None:
    assert parse_instant(iso(ms)) == ms
    assert iso(ms).endswith("Z")
    assert len(iso(ms)) == len("2026-01-02T03:04:05.678Z")


def test_never_is_null() -> None:
    assert iso_or_none(-1) is None
    assert iso_or_none(None) is None
    assert iso_or_none(0) == "1970-01-01T00:00:00.000Z"


def test_months_are_those_of_utc() -> None:
    assert month_of(parse_instant("2026-01-31T23:59:59.999Z")) == "2601"
    assert month_of(parse_instant("2026-02-01T00:00:00Z")) == "2602"


def test_without_a_file_it_is_real_time() -> None:
    before = time.time_ns() // 1_000_000
    assert before <= Clock().now_ms() <= before + 10_000


def _reread(path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(clock, "_REREAD_SECONDS", -1.0)
    return Clock(str(path))


def test_a_file_moves_time_and_lets_it_run_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clock.json"
    real = time.time_ns() // 1_000_000
    path.write_text(json.dumps({"real": real - 1000, "virtual": 5_000_000_000_000, "rate": 200.0}))
    now = _reread(path, monkeypatch).now_ms()
    assert 5_000_000_200_000 <= now <= 5_000_000_200_000 + 10_000 * 200


def test_time_never_goes_back_whatever_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clock.json"
    write_clock(path, 5_000_000_000_000)
    moved = _reread(path, monkeypatch)
    latest = moved.now_ms()
    path.write_text(json.dumps({"real": 0, "virtual": 1, "rate": 0}))
    assert moved.now_ms() >= latest


def test_time_is_only_moved_forward(tmp_path: Path) -> None:
    path = tmp_path / "clock.json"
    write_clock(path, 5_000_000_000_000)
    with pytest.raises(ValueError, match="only moves forward"):
        write_clock(path, 4_999_999_999_999)
    write_clock(path, 6_000_000_000_000)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"real": 1}', '{"real": "x", "virtual": 1, "rate": 1}'])
def test_a_file_nobody_can_read_leaves_time_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    """A service must not die because somebody edits the file."""
    path = tmp_path / "clock.json"
    if content is not None:
        path.write_text(content)
    before = time.time_ns() // 1_000_000
    moved = _reread(path, monkeypatch)
    assert before <= moved.now_ms() <= before + 10_000
