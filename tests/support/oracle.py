"""Is what the installation holds and published exactly what its raw log and its recorded ticks amount to?

A batch program that imports nothing from `services`: it refolds the raw topic and the first decisions in its own
words and lists every difference. `python -m tests.support.oracle --home HOME`; exit code 1 when there is any.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared.contracts.events import Accepted, Erase, FeedRow, decode_decision, decode_feed
from tests.support import oracle_alerts, oracle_limits, oracle_log, oracle_messages, oracle_numbers, oracle_schedules
from tests.support.oracle_fold import Shard, folded
from tests.support.oracle_snapshot import OVERWRITTEN, Snapshot, of_nobody, take


class Verdict:
    """`differences` is empty when everything is equal. The counts tell how much was compared."""

    def __init__(self) -> None:
        self.differences: list[str] = []
        self.counts: dict[str, int] = dict.fromkeys(
            (
                "raw",
                "accepted",
                "rejected",
                "moved",
                "erase",
                "readmit",
                "duplicates",
                "decided_again",
                "decided_otherwise",
                "users",
                "merged",
                "refused",
                "forwarded",
            ),
            0,
        )


def judge(snapshot: Snapshot, *, repeated_sends: int = 0, unknown: int = 0) -> Verdict:
    """Refold everything and compare."""
    verdict = Verdict()
    found, counts = verdict.differences, verdict.counts
    if len(snapshot.log_ids) > 1:
        found.append(f"the log was replaced ({sorted(snapshot.log_ids)}): what came before it cannot be refolded")
        return verdict
    decisions = [oracle_log.read(snapshot.events.get(shard, []), shard, found) for shard in range(snapshot.shards)]
    shards = [Shard(snapshot, shard, decided, found) for shard, decided in enumerate(decisions)]
    folded(shards, snapshot)
    for shard, (decided, should) in enumerate(zip(decisions, shards, strict=True)):
        oracle_log.check(snapshot, shard, decided, found)
        found += should.compare(snapshot)
        found += oracle_numbers.check(snapshot, shard)
        counts["raw"] += len(snapshot.raw.get(shard, []))
        for decision in decided.first:
            counts[type(decision).__name__.lower()] += 1
        counts["duplicates"] += should.duplicates
        counts["decided_again"] += decided.repeats
        counts["decided_otherwise"] += decided.otherwise
        counts["users"] += sum(person.born and not person.merged_into for person in should.people.values())
        counts["merged"] += sum(bool(person.merged_into) and person.born for person in should.people.values())
        counts["refused"] += sum(row.kind == "merge_refused" for p in should.people.values() for row in p.rows)
        counts["forwarded"] += sum(message.what == "forwarded" for message in should.sent)
    told = without_erased(snapshot, {one.person.user_id for s in shards for one in s.gone if one.person is not None})
    found += oracle_messages.check(told, repeated_sends, unknown)
    found += oracle_alerts.check(told)
    found += oracle_schedules.check(told)
    found += oracle_limits.check(told)
    counts["ledger"] = len(snapshot.ledger)
    counts["ticks"] = len(snapshot.ticks)
    counts["messages"] = len(snapshot.messages)
    counts["alerts"] = len(snapshot.context_events)
    of_alerts = {r["run_id"]: r["occurrence"] for r in snapshot.runs if r["context"] == "alert"}
    counts["alert_messages"] = sum(m["run_id"] in of_alerts for m in snapshot.messages)
    counts["schedule_messages"] = sum(bool(m["run_id"]) for m in snapshot.messages) - counts["alert_messages"]
    chains = {row["alert_id"]: row["chain_id"] for row in snapshot.chains}
    counts["chains_joined"] = len({name for name in of_alerts.values() if chains[name] != name})
    counts["pushes"] = len(snapshot.pushes or ())
    sent = (decode_feed(record.value or b"") for log in snapshot.feed.values() for record in log)
    rows = sum(isinstance(one, FeedRow) for one in sent)
    counts["sent_again"] = rows - len(snapshot.ledger)
    return verdict


def without_erased(snapshot: Snapshot, more: set[str]) -> Snapshot:
    """The snapshot without what is left of erased users, of `more` than those who were asked for by these ids: nothing
    tells any more what they should have been sent."""
    decisions = [decode_decision(record.value or b"") for log in snapshot.events.values() for record in log]
    erased = {one.user_id for one in decisions if isinstance(one, Erase)} | more
    if not erased:
        return snapshot
    tokens = {
        one.context.device.token
        for one in decisions
        if isinstance(one, Accepted) and one.user_id in erased and one.context and one.context.device
    }
    messages = [row for row in snapshot.messages if not of_nobody(row)]
    kept = {row["message_id"] for row in messages}
    return replace(
        snapshot,
        ledger=[row for row in snapshot.ledger if row["src"] != OVERWRITTEN],
        messages=messages,
        outcome_rows=[row for row in snapshot.outcome_rows if not of_nobody(row)],
        pushes=snapshot.pushes
        and [p for p in snapshot.pushes if p["token"] not in tokens or p["data"].get("message_id") in kept],
    )


async def examine(status: dict[str, Any], rate: float = 1.0, **allowed: int) -> Verdict:
    """Judge a running installation by its `status.json`. `rate`: how much faster than ours its time passed at most."""
    snapshot = await take(status)
    snapshot.near = int(snapshot.near * rate)
    return judge(snapshot, **allowed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path(".perennial"))
    told = parser.parse_args()
    verdict = asyncio.run(examine(json.loads((told.home / "status.json").read_text())))
    print(json.dumps(verdict.counts))
    for difference in verdict.differences:
        print(difference)
    print("equal" if not verdict.differences else f"{len(verdict.differences)} differences")
    return 1 if verdict.differences else 0


if __name__ == "__main__":
    sys.exit(main())
