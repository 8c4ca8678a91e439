"""Where chains of alerts stand, and what users were shown of them: read for the pages of runs.

A chain may have several names: alerts that turn out to belong together join chains that messages lie under already.
What is read with a page is of the page's snapshot; what was shown is read when the page is planned, by the shard's only
owner.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from services.notifier.domain.alert_chain import InForce, Shown, Told
from shared.data.db import Connection, Pool
from shared.process.clock import month_of

_NAMES = """
SELECT r.run_id, o.run_id AS other, o.occurrence, o.began_at, o.created_at, o.context_offset FROM notifier.run r
JOIN notifier.alert_chain mine ON mine.alert_id = r.occurrence
JOIN notifier.alert_chain alike ON alike.chain_id = mine.chain_id
JOIN notifier.run o ON o.campaign = r.campaign AND o.occurrence = alike.alert_id
WHERE r.run_id = ANY($1::text[])
"""
_IN_FORCE = """
SELECT r.run_id, e.context_id, e.city_ids, e.sent_at, e.valid_until, e.body FROM notifier.run r
JOIN notifier.alert_chain mine ON mine.alert_id = r.occurrence
JOIN notifier.alert_chain alike ON alike.chain_id = mine.chain_id
JOIN notifier.context_event e ON e.context_id = alike.alert_id
WHERE r.run_id = ANY($1::text[]) AND alike.replaced_by = '' AND e.verdict = 'matched'
"""
# one look-up by key per user: a join would walk every month's messages
_SHOWN = """
SELECT n.shard, n.user_id, m.* FROM unnest($1::int[], $2::text[]) AS n(shard, user_id) CROSS JOIN LATERAL (
    SELECT t.message_id, t.chain, t.state, t.reason, t.action, t.planned_at, t.expires_at, t.title, t.body, t.device_id,
        t.told
    FROM notifier.message t
    WHERE t.shard = n.shard AND t.chain <> '' AND t.chain = ANY($3::text[]) AND t.user_id = n.user_id
        AND t.month = ANY($4::text[]) AND t.campaign = $5 OFFSET 0
) m
ORDER BY m.planned_at
"""
_NOT_SHOWN = ("suppressed", "failed")


class Chain(NamedTuple):
    """A chain as it stands. `names`: what messages may lie under → when that began. `overtaken`: another run of the
    campaign brings everyone further."""

    root: str
    names: Mapping[str, int]
    alerts: tuple[InForce, ...]
    overtaken: bool

    @property
    def city_ids(self) -> list[int]:
        """Cities where any of it is in force, ascending."""
        return sorted({city for alert in self.alerts for city in alert.cities})

    @property
    def months(self) -> list[str]:
        """Months whose messages may be of it."""
        return sorted({month_of(began_at) for began_at in self.names.values()})


NO_CHAIN = Chain("", {}, (), False)


class Story(NamedTuple):
    """What a user was shown last under each name, and why the very last message was not sent ("": it was)."""

    shown: tuple[Shown, ...] = ()
    not_sent: str = ""


UNTOLD = Story()


async def load(connection: Connection, run_ids: Iterable[str]) -> dict[str, Chain]:
    """The chains of these runs."""
    wanted = sorted(set(run_ids))
    if not wanted:
        return {}
    names: defaultdict[str, dict[str, int]] = defaultdict(dict)
    order: defaultdict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for row in await connection.fetch(_NAMES, wanted):
        names[row["run_id"]][row["occurrence"]] = row["began_at"]
        order[row["run_id"]].append((row["created_at"], row["context_offset"], row["other"]))
    alerts: defaultdict[str, list[InForce]] = defaultdict(list)
    for row in await connection.fetch(_IN_FORCE, wanted):
        facts = msgspec.json.decode(row["body"])
        alerts[row["run_id"]].append(
            InForce(
                row["context_id"], facts["event"], facts["severity"], row["sent_at"], row["valid_until"],
                frozenset(row["city_ids"]), facts,
            )
        )  # fmt: skip
    return {
        run_id: Chain(
            min(names[run_id], key=lambda name: (names[run_id][name], name)),
            names[run_id],
            tuple(alerts[run_id]),
            max(order[run_id])[-1] != run_id,
        )
        for run_id in wanted
        if run_id in names
    }


async def stories(
    pool: Pool, campaign: str, ttl_seconds: int, chain: Chain, keys: Iterable[tuple[int, str]]
) -> dict[tuple[int, str], Story]:
    """What these users (by shard) were shown of the chain by a campaign, whose messages live so long at most."""
    wanted = sorted(keys)
    if not wanted:
        return {}
    shown: defaultdict[tuple[int, str], dict[str, Shown]] = defaultdict(dict)
    not_sent: dict[tuple[int, str], str] = {}
    shards, users = [shard for shard, _ in wanted], [user for _, user in wanted]
    for row in await pool.fetch(_SHOWN, shards, users, list(chain.names), chain.months, campaign):
        key = (row["shard"], row["user_id"])
        not_sent[key] = row["reason"] if row["state"] == "suppressed" else ""
        if row["state"] in _NOT_SHOWN:
            continue
        one, before = _shown(row, ttl_seconds), shown[key].get(row["chain"])
        if one.state == "held" and before is not None:
            # until it goes out the phone shows what came before it; what comes next takes its place
            one = replace(before, message_id=one.message_id)
        shown[key][row["chain"]] = one
    return {key: Story(tuple(shown[key].values()), reason) for key, reason in not_sent.items()}


def _shown(row: Any, ttl_seconds: int) -> Shown:
    told = msgspec.json.decode(row["told"], type=Told) if row["told"] else None
    # put back after a restore, or held out: there is no push that would end
    until = row["expires_at"] or row["planned_at"] + ttl_seconds * 1000
    return Shown(
        row["chain"], row["message_id"], row["state"], row["action"], row["planned_at"], until, row["title"],
        row["body"], row["device_id"], told,
    )  # fmt: skip
