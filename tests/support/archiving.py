"""How a test archives an installation's log in its own process, and looks at all that the fold has made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from services.archive.archiver import Archiver, Measure
from services.archive.folder import Folder
from services.segmenter.domain.state import decode_hot
from shared.contracts.topics import Topic
from shared.process.http import Health
from tests.support.spine import SHARDS, Site

AT_ONCE = Measure(seconds=0, records=1, file_bytes=2000, look_seconds=0.05)
"""Nothing waits, and files are small, so that there are several."""

STATE = {
    "users": "SELECT shard, user_id, rules_version, hot, cold FROM segmenter.user_state ORDER BY 1, 2",
    "cohorts": "SELECT * FROM segmenter.cohort_member ORDER BY shard, city_id, relation, user_id",
    "tallies": "SELECT * FROM segmenter.tally WHERE users <> 0 ORDER BY shard, kind, name",
    "days": "SELECT * FROM segmenter.tally_day WHERE users <> 0 ORDER BY kind, name, day, shard",
    "times": "SELECT * FROM segmenter.shard_time ORDER BY shard",
    "suppressed": "SELECT * FROM segmenter.suppressed ORDER BY shard, hash",
    "ticks": "SELECT shard, tick_id, seq, at_src, log_id, as_of, rules_version FROM segmenter.tick_log ORDER BY 1, 2",
}


async def state(site: Site) -> dict[str, list[dict[str, Any]]]:
    """Everything the fold makes of its input, row by row; and that no user would be swept too late."""
    for row in await site.rows("SELECT user_id, due_bucket, hot FROM segmenter.user_state"):
        due = decode_hot(row["hot"]).due_at
        assert due < 0 or (row["due_bucket"] is not None and row["due_bucket"] <= due // 3_600_000), row["user_id"]
    return {name: await site.rows(query) for name, query in STATE.items()}


def archiver(site: Site, path: Path, measure: Measure = AT_ONCE) -> Archiver:
    return Archiver(
        reader=site.log,
        pool=site.pool,
        folder=Folder(path, "log-1"),
        topics=[site.topic(Topic.RAW), site.topic(Topic.EVENTS)],
        shards=SHARDS,
        measure=measure,
        clock=site.clock,
        health=Health(),
    )


async def archive(site: Site, path: Path, measure: Measure = AT_ONCE) -> Folder:
    """Archive what waits, as a process does that has just begun; until nothing is left."""
    folder = Folder(path, "log-1")
    with folder.sole() as alone:
        assert alone
        for _ in range(20):
            before = [folder.files(topic, p) for topic in folder.topics() for p in folder.partitions(topic)]
            await archiver(site, path, measure).round()
            if before == [folder.files(topic, p) for topic in folder.topics() for p in folder.partitions(topic)]:
                return folder
    raise AssertionError("it goes on and on")
