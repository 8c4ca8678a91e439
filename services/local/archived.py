"""Where the records of a partition come from that its topic may not have any more: the archive, then the topic.

What is missing is an error that names the offsets; nothing is passed over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice

from services.archive import segments
from services.archive.folder import File, Folder
from services.local.program import LocalError
from shared.contracts.identifiers import record_digest
from shared.kafka.log_reader import LogReader
from shared.kafka.records import InRecord

_PAGE = 5000
_ALL = 2**63 - 1


@dataclass(frozen=True)
class Road:
    """The files to read, and the offsets from `begin` on that follow in the topic; all before `until`. `end`: about
    where it will end."""

    files: Sequence[File]
    begin: int
    until: int
    end: int


class Archived:
    """One topic, beginning in the archive. Without one (None) the topic has to reach back to its first record."""

    def __init__(self, folder: Folder | None, reader: LogReader, topic: str) -> None:
        self._folder, self._reader, self._topic = folder, reader, topic

    async def road(self, partition: int, until: int | None) -> Road:
        """How to get all records before `until`; None: all there are. LocalError or `Broken` where some are missing."""
        files = self._folder.chain(self._topic, partition) if self._folder is not None else []
        start = (await self._reader.starts(self._topic, [partition]))[partition]
        end = (await self._reader.ends(self._topic, [partition]))[partition]
        behind = files[-1].last + 1 if files else 0
        about = max(behind, end) if until is None else until
        until = _ALL if until is None else until
        if behind < min(start, until):
            whence = f"archived up to {behind - 1}" if files else "not archived"
            raise LocalError(
                f"{self._topic}[{partition}]: offsets {behind} to {min(start, until) - 1} are missing: the topic begins"
                f" at {start}, and is {whence}"
            )
        if files and start <= files[-1].last < end:
            await self._same(partition, files)
        return Road([file for file in files if file.first < until], behind, until, about)

    async def _same(self, partition: int, files: Sequence[File]) -> None:
        """Archive and topic are of one log, if they agree in the last record that both have."""
        kept = files[-1].end()
        if kept is None:
            return
        there = (await self._reader.at(self._topic, {partition: kept.offset}))[partition]
        if there is None or record_digest(there.key, there.value) != segments.digest(kept):
            raise LocalError(
                f"{self._topic}[{partition}] holds another record at offset {kept.offset} than {files[-1].path}:"
                " the archive is another log's"
            )

    async def pages(self, partition: int, road: Road) -> AsyncIterator[list[InRecord]]:
        """The records, in order."""
        for file in road.files:
            records = file.records()
            while page := list(islice(records, _PAGE)):
                wanted: list[InRecord] = [record for record in page if record.offset < road.until]
                if wanted:
                    yield wanted
        if road.begin >= road.until:
            return
        async with aclosing(self._reader.behind(self._topic, {partition: road.begin})) as pages:
            async for found in pages:
                wanted = [record for record in found if record.offset < road.until]
                if wanted:
                    yield wanted
                if found[-1].offset >= road.until - 1:
                    return


def others(folder: Folder, topic: str) -> list[str]:
    """The other logs that a topic of this name was archived from."""
    logs = [path for path in folder.path.iterdir() if path.is_dir() and path.name != folder.log_id]
    return sorted(path.name for path in logs if (path / topic).is_dir())
