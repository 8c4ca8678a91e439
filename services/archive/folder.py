"""Where the archive's files lie, which offsets they answer for, and how one comes into being or fails to.

`PATH/LOG/TOPIC/PARTITION/FIRST-LAST.ndjson.zst`. The names are the position: the archiver goes on behind the greatest
LAST, and a file's FIRST is the LAST before it plus one. A file appears whole or not at all.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.archive import segments
from services.archive.segments import Archived, Damaged, Head
from shared.process.crash import POINTS
from shared.process.errors import Fatal, Transient

ENDING = ".ndjson.zst"
_HALF = ".half"
_NAME = re.compile(r"(\d{20})-(\d{20})" + re.escape(ENDING))
_SAFE = re.compile(r"[A-Za-z0-9._-]+")


class Broken(Fatal):
    """Files of the archive are missing, overlap, or do not hold what was written into them."""


@dataclass(frozen=True, order=True)
class File:
    """One file, by its name alone: it answers for the offsets `first` to `last`, both included."""

    first: int
    last: int
    path: Path

    def packed(self) -> bytes:
        return self.path.read_bytes()

    def records(self) -> Iterator[Archived]:
        """The records in it. `Broken`, with the file's name, unless it is whole and in the place it was made for."""
        try:
            head, records = segments.unpack(self.packed())
        except (Damaged, OSError) as error:
            raise Broken(f"{self.path}: {error}") from error
        topic, partition = self.path.parts[-3:-1]
        if (head.topic, str(head.partition), head.first, head.last) != (topic, partition, self.first, self.last):
            raise Broken(f"{self.path}: it holds {head.topic}[{head.partition}] {head.first} to {head.last}")
        return records

    def end(self) -> Archived | None:
        """The last record in it; None where it has none."""
        found = deque(self.records(), maxlen=1)
        return found[0] if found else None


class Folder:
    """The archive of one installation's log. Only who holds `sole()` writes; anybody may read."""

    def __init__(self, path: Path, log_id: str) -> None:
        self.path, self.log_id = path, log_id
        if not _SAFE.fullmatch(log_id):
            raise Fatal(f"the log is called {log_id!r}, which is no name for a folder")

    @property
    def log(self) -> Path:
        return self.path / self.log_id

    @contextmanager
    def sole(self) -> Iterator[bool]:
        """Whether nobody else writes here until the end. The lock ends with its process, however that ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held = (self.path / "lock").open("a")
        except OSError as error:
            raise Transient(f"cannot write to {self.path}: {error.strerror}") from error
        with held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def topics(self) -> list[str]:
        return sorted(p.name for p in self.log.iterdir() if p.is_dir()) if self.log.is_dir() else []

    def partitions(self, topic: str) -> list[int]:
        found = (self.log / topic).iterdir() if (self.log / topic).is_dir() else []
        return sorted(int(p.name) for p in found if p.name.isdecimal())

    def files(self, topic: str, partition: int) -> list[File]:
        """All files of a partition, by first offset; what is no file of the archive is passed over."""
        where = self.log / topic / str(partition)
        found = [(_NAME.fullmatch(path.name), path) for path in where.iterdir()] if where.is_dir() else []
        return sorted(File(int(name[1]), int(name[2]), path) for name, path in found if name is not None)

    def next_offset(self, topic: str, partition: int) -> int | None:
        """The first offset no file answers for; None while there is no file."""
        return max((file.last + 1 for file in self.files(topic, partition)), default=None)

    def breaks(self, topic: str, partition: int) -> list[str]:
        """Where the files, by their names, do not answer for every offset from 0 on, each once."""
        wanted, found = 0, []
        where = self.log / topic / str(partition)
        for file in self.files(topic, partition):
            if file.first > wanted:
                found.append(f"{where}: offsets {wanted} to {file.first - 1} are missing, before {file.path.name}")
            if file.first < wanted:
                found.append(f"{where}: offsets {file.first} to {wanted - 1} are there twice, in {file.path.name}")
            wanted = file.last + 1
        return found

    def chain(self, topic: str, partition: int) -> list[File]:
        """The files, which answer for every offset from 0 on. `Broken` names the offsets that are missing."""
        if found := self.breaks(topic, partition):
            raise Broken(found[0])
        return self.files(topic, partition)

    def write(self, head: Head, packed: bytes) -> File:
        """Make a file. When this returns it is on disk, with its name."""
        where = self.log / head.topic / str(head.partition)
        path = where / f"{head.first:020}-{head.last:020}{ENDING}"
        replace(path, packed)
        return File(head.first, head.last, path)

    def clean(self) -> int:
        """Take away what a writer left behind that ended in the middle; how many files. Only under `sole()`."""
        left = list(self.log.glob(f"*/*/*{_HALF}")) if self.log.is_dir() else []
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)


def replace(path: Path, content: bytes) -> None:
    """Have `path` hold `content`, durably: whoever looks sees it whole, or as it was before. `Transient` when the disk
    does not take it."""
    half = path.with_name(path.name + _HALF)
    try:
        made = not path.parent.is_dir()
        path.parent.mkdir(parents=True, exist_ok=True)
        with half.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        POINTS.passing("archive.half_written")
        half.replace(path)
        _sync(path.parent)
        for folder in path.parents[1:4] if made else ():
            _sync(folder)
    except OSError as error:
        raise Transient(f"cannot write {path}: {error.strerror}") from error


def _sync(folder: Path) -> None:
    """A name is durable once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
