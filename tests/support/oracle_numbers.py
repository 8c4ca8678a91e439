"""Whether a shard's rows are numbered without a gap, and reach their topics as a subscriber would read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from shared.contracts.events import FeedTime, decode_feed
from tests.support.oracle_fold import FEED_ONLY
from tests.support.oracle_person import rfc3339
from tests.support.oracle_snapshot import OVERWRITTEN, Rows, Snapshot, of_nobody
from tests.support.oracle_topics import Seen

Number = tuple[int, int]


def check(snapshot: Snapshot, shard: int) -> list[str]:
    owner = next((o for o in snapshot.owners if o["shard"] == shard and o["service"] == "segmenter"), None)
    ledger = [row for row in snapshot.ledger if row["shard"] == shard]
    if owner is None:
        return [f"shard {shard}: nobody owns it, and there are {len(ledger)} rows"] if ledger else []
    changes = [r for r in ledger if r["kind"] not in FEED_ONLY | {"dead_letter", "merge_refused"}]
    dead = [r for r in ledger if r["kind"] == "dead_letter"]
    found = _numbers(ledger, owner, shard)
    found += _links("changes", changes, owner["last_change_seq"], shard)
    found += _links("dead letters", dead, owner["last_dead_seq"], shard)
    found += _topic(snapshot.feed.get(shard, []), ledger, f"user.feed.v1[{shard}]", _feed_record)
    found += _topic(snapshot.changes.get(shard, []), changes, f"segment.changes.v1[{shard}]", _json_record(_change))
    found += _topic(snapshot.dead.get(shard, []), dead, f"dead.letters.v1[{shard}]", _json_record(_dead))
    outcomes = [r for r in snapshot.outcome_rows if r["shard"] == shard]
    notifier = next((o for o in snapshot.owners if o["shard"] == shard and o["service"] == "notifier"), None)
    if notifier is not None:
        found += _numbers(outcomes, notifier, shard)
    found += _topic(snapshot.outcomes.get(shard, []), outcomes, f"push.outcomes.v1[{shard}]", _json_record(_outcome))
    return found


def _numbers(rows: Rows, owner: dict[str, Any], shard: int) -> list[str]:
    seqs = [row["seq"] for row in rows]
    expected = list(range(1, owner["next_seq"]))
    if seqs == expected:
        return []
    doubled = sorted({s for s in seqs if seqs.count(s) > 1}) if len(seqs) != len(set(seqs)) else []
    missing = sorted(set(expected) - set(seqs))
    beyond = sorted(set(seqs) - set(expected))
    return [f"{owner['service']} {shard}: numbers doubled {doubled[:5]}, missing {missing[:5]}, beyond {beyond[:5]}"]


def _links(what: str, rows: Rows, last: int, shard: int) -> list[str]:
    before = 0
    for row in rows:
        if row["prev_seq"] != before:
            return [f"shard {shard}: {what}: {row['seq']} names {row['prev_seq']} as the one before, not {before}"]
        before = row["seq"]
    return [] if before == last else [f"shard {shard}: {what} end at {before}, the owner's row says {last}"]


Read = Callable[[Seen, dict[Number, dict[str, Any]]], tuple[Number, Any, Any] | None]


def _topic(records: list[Seen], rows: Rows, where: str, read: Read) -> list[str]:
    """Apply as a subscriber does — what is not greater than the greatest seen is a repeat — and compare."""
    by_number = {(row["gen"], row["seq"]): row for row in rows}
    order = list(by_number)
    newest = order[-1] if order else (0, 0)
    got: list[Number] = []
    found: list[str] = []
    for record in records:
        one = read(record, by_number)
        if one is None:
            continue
        number, told, should = one
        if got and number <= got[-1]:
            continue
        if number > newest:
            break  # written after the snapshot was taken
        got.append(number)
        if told != should:
            found.append(f"{where}@{record.offset}: {told!r}, should be {should!r}")
    if got != order:
        missing = [n for n in order if n not in set(got)]
        found.append(
            f"{where}: a subscriber applies {len(got)} of {len(order)} rows; missing (gen, seq): {missing[:5]}"
        )
    return found


def _feed_record(record: Seen, rows: dict[Number, dict[str, Any]]) -> tuple[Number, Any, Any] | None:
    told = decode_feed(record.value or b"")
    if isinstance(told, FeedTime):
        return None
    row = rows.get((told.gen, told.seq))
    should = row and row["src"] != OVERWRITTEN and (
        row["user_id"], row["seq"] - 1, row["kind"],
        {} if row["kind"] == "merge_sent" else row["payload"], row["occurred_at"], row["recorded_at"],
        (row["cause_type"], row["cause_id"]), row["src"], row["rules_version"],
    )  # fmt: skip
    if should is False:
        return (told.gen, told.seq), None, None  # what was told of somebody who was erased later
    return (
        (told.gen, told.seq),
        (told.user_id, told.prev_seq, told.kind, told.payload, told.occurred_at, told.recorded_at, tuple(told.cause),
         told.src, told.rules),
        should,
    )  # fmt: skip


def _json_record(expected: Callable[[dict[str, Any]], dict[str, Any]]) -> Read:
    def read(record: Seen, rows: dict[Number, dict[str, Any]]) -> tuple[Number, Any, Any] | None:
        told = json.loads(record.value or b"{}")
        number = (told["gen"], told["seq"])
        row = rows.get(number)
        if row and (row.get("src") == OVERWRITTEN or of_nobody(row)):
            return number, None, None
        return number, told, row and expected(row)

    return read


def _change(row: dict[str, Any]) -> dict[str, Any]:
    # ids are strings wherever others read them
    payload = {name: str(value) if name == "city_id" else value for name, value in row["payload"].items()}
    return {
        "user_id": row["user_id"],
        "kind": row["kind"],
        **payload,
        "occurred_at": rfc3339(row["occurred_at"]),
        "recorded_at": rfc3339(row["recorded_at"]),
        "cause": {"type": row["cause_type"], "id": row["cause_id"]},
        **{name: row[name] for name in ("shard", "gen", "seq", "prev_seq", "rules_version")},
    }


def _dead(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "user_id": row["user_id"],
        "reason": row["payload"]["reason"],
        "raw": {"partition": row["shard"], "offset": row["src"]},
        "source": row["payload"]["source"],
        "replay": row["payload"].get("replay", False),
        "recorded_at": rfc3339(row["recorded_at"]),
        **{name: row[name] for name in ("shard", "gen", "seq", "prev_seq")},
    }


def _outcome(row: dict[str, Any]) -> dict[str, Any]:
    names = (
        "message_id",
        "user_id",
        "campaign",
        "variant",
        "outcome",
        "reason",
        "provider",
        "shard",
        "gen",
        "seq",
        "chain",
    )
    return {**{name: row[name] for name in names}, "occurred_at": rfc3339(row["occurred_at"])}
