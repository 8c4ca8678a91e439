"""Whom a campaign was for, treated or held out, and what they did in the window after: what its lift is computed from.

The first time counts, once per user and version: a user treated twice is still one user. Sessions are told by the feed,
one row each; they are counted in the commit of the batch that brings them, so that each counts once. A session's depth
is known when the user's next one begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from services.notifier.domain import lift
from services.notifier.domain.lift import Arm
from services.notifier.messages import Message
from shared.contracts.events import FeedRow
from shared.contracts.rules import Campaign
from shared.data.db import Connection, Pool

_INSERT = """
INSERT INTO notifier.exposure (shard, user_id, campaign, campaign_version, variant, exposed_at, until)
SELECT * FROM unnest($1::int[], $2::text[], $3::text[], $4::int[], $5::text[], $6::bigint[], $7::bigint[])
ON CONFLICT DO NOTHING
"""
# OFFSET 0: one look-up by key per session, whatever the planner thinks of the table
_COUNT = """
WITH found AS (
    SELECT e.shard, e.user_id, e.campaign, e.campaign_version,
        count(*) FILTER (WHERE t.began_at > e.exposed_at AND t.began_at <= e.until) AS opens,
        count(*) FILTER (WHERE t.ended_began_at > e.exposed_at AND t.ended_began_at <= e.until) AS ended,
        coalesce(sum(t.screens) FILTER (WHERE t.ended_began_at > e.exposed_at AND t.ended_began_at <= e.until), 0)
            AS screens
    FROM unnest($1::int[], $2::text[], $3::bigint[], $4::bigint[], $5::int[])
        AS t(shard, user_id, began_at, ended_began_at, screens)
    CROSS JOIN LATERAL (
        SELECT * FROM notifier.exposure x WHERE x.shard = t.shard AND x.user_id = t.user_id OFFSET 0
    ) e
    GROUP BY e.shard, e.user_id, e.campaign, e.campaign_version
)
UPDATE notifier.exposure x SET opens = x.opens + f.opens, ended = x.ended + f.ended, screens = x.screens + f.screens
FROM found f WHERE x.shard = f.shard AND x.user_id = f.user_id AND x.campaign = f.campaign
    AND x.campaign_version = f.campaign_version AND f.opens + f.ended > 0
"""
_SUMS = """
SELECT variant, count(*) AS users, count(*) FILTER (WHERE opens > 0) AS opened, sum(opens) AS opens,
    sum(opens::bigint * opens) AS opens_squared, count(*) FILTER (WHERE ended > 0) AS ended_users, sum(ended) AS ended,
    sum(screens) AS screens, sum(ended::bigint * ended) AS ended_squared,
    sum(screens::bigint * screens) AS screens_squared, sum(ended::bigint * screens) AS ended_screens,
    count(*) FILTER (WHERE until > $3) AS still_open
FROM notifier.exposure WHERE campaign = $1 AND campaign_version = $2 GROUP BY variant
"""


class Session(NamedTuple):
    """A user began a session; the one before it had begun at `ended_began_at` (-1: there was none)."""

    shard: int
    user_id: str
    began_at: int
    ended_began_at: int
    ended_screens: int


def session_of(shard: int, row: FeedRow) -> Session:
    told = row.payload
    return Session(shard, row.user_id, row.occurred_at, told["ended_began_at"], told["ended_screens"])


async def record(connection: Connection, planned: Iterable[Message]) -> None:
    """Note the users of those messages whose campaign compares; of a user it knows already nothing changes."""
    rows = [
        (m.shard, m.user_id, m.campaign, m.campaign_version, m.variant, m.planned_at, m.compared_until)
        for m in planned
        if m.compared_until
    ]
    if rows:
        await connection.execute(_INSERT, *map(list, zip(*rows, strict=True)))


async def count(connection: Connection, sessions: list[Session]) -> None:
    """Count these sessions for whatever the users were exposed to; must be called once for each."""
    if sessions:
        await connection.execute(_COUNT, *map(list, zip(*sessions, strict=True)))


async def compare(pool: Pool, campaign: Campaign, now_ms: int) -> dict[str, Any] | None:
    """The campaign's lift since its version came into force; None where it holds nobody out."""
    if not campaign.measured:
        return None
    arms, still_open = {"treated": Arm(), "holdout": Arm()}, 0
    for row in await pool.fetch(_SUMS, campaign.id, campaign.version, now_ms):
        sums = {name: int(row[name]) for name in Arm.__struct_fields__}
        arms[row["variant"]], still_open = Arm(**sums), still_open + row["still_open"]
    treated, holdout = arms["treated"], arms["holdout"]
    ratio = lift.sample_ratio(treated, holdout, campaign.holdout_percent)
    return {
        "campaign_version": campaign.version,
        "window_hours": campaign.window_hours,
        "still_open": still_open,
        "treated": _arm(treated),
        "holdout": _arm(holdout),
        "enough": lift.enough(treated, holdout),
        "minimum_users": lift.MINIMUM_USERS,
        "confidence_percent": lift.CONFIDENCE_PERCENT,
        "opened_percent": _difference(lift.share(treated, holdout), 100),
        "opens_per_user": _difference(lift.opens(treated, holdout)),
        "depth": _difference(lift.depth(treated, holdout)),
        "sample_ratio": msgspec.structs.asdict(ratio) | {"as_planned": ratio.as_planned} if ratio else None,
    }


def _arm(arm: Arm) -> dict[str, Any]:
    return {
        "users": arm.users,
        "opened": arm.opened,
        "opened_percent": round(100 * arm.share, 4),
        "opens": arm.opens,
        "opens_per_user": round(arm.opens_per_user, 6),
        "sessions_ended": arm.ended,
        "depth": round(arm.depth, 6) if arm.ended else None,
    }


def _difference(found: lift.Difference | None, unit: float = 1) -> dict[str, float] | None:
    if found is None:
        return None
    return {name: round(unit * value, 6) for name, value in msgspec.structs.asdict(found).items()}
