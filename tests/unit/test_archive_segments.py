"""Does a file of the archive give back every byte, and does it notice every one that was changed?"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.archive import segments
from services.archive.folder import Broken, Folder
from services.archive.segments import Archived, Damaged, Head
from shared.contracts.events import TimeRecord, encode

_BYTES = st.one_of(st.none(), st.binary(max_size=40), st.text(max_size=40).map(str.encode))
_RECORD = st.builds(
    Archived,
    partition=st.just(3),
    offset=st.integers(0, 2**62),
    timestamp=st.integers(-1, 2**62),
    key=_BYTES,
    value=_BYTES,
    headers=st.lists(st.tuples(st.text(max_size=9), st.binary(max_size=9)), max_size=3),
)


def _head(first: int, last: int) -> Head:
    return Head(segments.FORMAT, "log-1", "app.events.v1", 3, first, last)


def _packed(records: list[Archived]) -> bytes:
    return segments.pack(_head(0, 9), [segments.line(record) for record in records])


@given(st.lists(_RECORD, max_size=8))
def test_records_come_back_as_they_were(records: list[Archived]) -> None:
    """Keys, values and headers are bytes: what is no text, what is empty and what is not there stay apart."""
    head, found = segments.unpack(_packed(records))
    assert head == _head(0, 9) and list(found) == records


def test_no_bit_can_be_changed_or_be_missing_unnoticed() -> None:
    """Not even one that decompression would not mind."""
    records = [
        Archived(3, 0, 1, b"user-1", b'{"event":"Application Opened"}', [("type", b"track")]),
        Archived(3, 1, 2, b"", encode(TimeRecord(0, b"\xff" * 8, 1, 2))),
    ]
    packed = _packed(records)
    for place in range(len(packed)):
        for bit in range(8):
            changed = bytearray(packed)
            changed[place] ^= 1 << bit
            with pytest.raises(Damaged):
                segments.unpack(bytes(changed))
        with pytest.raises(Damaged):
            segments.unpack(packed[:place])


def test_what_lies_where_it_does_not_belong_is_named(tmp_path: Path) -> None:
    """A file that was copied under another name would otherwise fill the place of one that is missing."""
    folder = Folder(tmp_path, "log-1")
    first = folder.write(_head(0, 4), segments.pack(_head(0, 4), []))
    folder.write(_head(5, 9), segments.pack(_head(5, 9), []))
    assert folder.breaks("app.events.v1", 3) == []
    behind = first.path.with_name(first.path.name.replace("0000-", "0010-").replace("0004.", "0014."))
    behind.write_bytes(first.packed())
    copied = folder.files("app.events.v1", 3)[-1]
    assert (copied.first, copied.last) == (10, 14)
    with pytest.raises(Broken, match=r"0{18}10-0{18}14.*holds app.events.v1\[3\] 0 to 4"):
        copied.records()
    first.path.unlink()
    (missing,) = folder.breaks("app.events.v1", 3)
    assert "offsets 0 to 4 are missing" in missing
    with pytest.raises(Broken, match="offsets 0 to 4 are missing"):
        folder.chain("app.events.v1", 3)


def test_one_writes_at_a_time(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "log-1")
    with folder.sole() as one:
        with Folder(tmp_path, "log-1").sole() as other:
            assert (one, other) == (True, False)
    with folder.sole() as again:
        assert again
