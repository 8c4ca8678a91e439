"""Whether an archive is whole: every file, and that they follow each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from services.archive.folder import Broken, Folder
from services.local.children import Say
from shared.process.clock import monotonic

_SAY_SECONDS = 2.0


@dataclass
class Read:
    files: int = 0
    records: int = 0


def verify(folder: Folder, topics: Iterable[str], say: Say) -> tuple[Read, list[str]]:
    """How much was read, and every problem found, each with the file or the offsets it is about."""
    read, problems, said = Read(), list[str](), monotonic()
    for topic in topics:
        for partition in folder.partitions(topic):
            problems += folder.breaks(topic, partition)
            for file in folder.files(topic, partition):
                try:
                    offsets = [record.offset for record in file.records()]
                except Broken as error:
                    problems.append(str(error))
                    continue
                read.files, read.records = read.files + 1, read.records + len(offsets)
                if offsets != sorted(set(offsets)) or not all(file.first <= o <= file.last for o in offsets):
                    problems.append(f"{file.path}: its offsets do not rise from {file.first} to {file.last}")
                if monotonic() - said > _SAY_SECONDS:
                    said = monotonic()
                    say(f"{topic}[{partition}]: {read.files:,} files, {read.records:,} records")
    return read, problems
