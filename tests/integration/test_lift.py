"""Who is compared with whom, and does every session count once: from the feed to what the API says."""

from __future__ import annotations

import msgspec

from services.notifier import exposures
from services.notifier.domain.holdout import held_out
from shared.contracts.events import FeedRow
from shared.contracts.rules import Cap, Limits, Rules
from tests.integration.test_limits import _rules
from tests.integration.test_notifier import Told, _quietly, _settled
from tests.support.people import HOUR
from tests.support.spine import Phones, Site, until, users_of

HALF = {"holdout_percent": 50.0, "window_hours": 24}


async def _salt(site: Site) -> str:
    return str(await site.pool.fetchval("SELECT salt FROM control.installation"))


def _session(told: Told, user: str, at: int, before: int = -1, screens: int = 0) -> FeedRow:
    return told.row(user, "session_began", {"ended_began_at": before, "ended_screens": screens}, at)


async def _compared(site: Site, rules: Rules) -> dict[str, dict[str, int]]:
    found = await exposures.compare(site.pool, rules.campaigns[0], site.clock.now_ms())
    assert found is not None
    names = ("users", "opened", "opens", "sessions_ended", "depth")
    return {side: {name: found[side][name] for name in names} for side in ("treated", "holdout")}


async def test_sessions_in_the_window_count_once_for_treated_and_held_out_alike(any_site: Site) -> None:
    """Also when the feed is read a second time, by another process: the count is in the batch's own commit."""
    site, phones = any_site, Phones()
    rules = _rules(Limits(), **HALF)
    await site.install(rules)
    salt, told = await _salt(site), Told(site)
    out = next(u for u in users_of(0, 40) if held_out("welcome", salt, u, 50))
    sent = next(u for u in users_of(0, 40) if not held_out("welcome", salt, u, 50))
    rows = [row for u in (out, sent) for row in (told.device(u), told.acquired(u))]
    await site.feed(*rows, shard=0)
    async with site.notifier(phones) as running:
        await _settled(site, running, 2)
        at = site.clock.now_ms() + 1000
        later = [
            _session(told, sent, at - HOUR, screens=9),  # before it was sent
            _session(told, sent, at, at - HOUR, 7),  # ends one from before
            _session(told, sent, at + HOUR, at, 4),
            _session(told, sent, at + 25 * HOUR, at + HOUR, 2),  # behind the window, but ends one within
            _session(told, out, at + HOUR),
            _session(told, users_of(0, 50)[-1], at),  # for whom there was no campaign
        ]
        await site.feed(*later, *later[-3:], shard=0)
        await site.applied(0, told.seq, "notifier")
        await _quietly(running)
    await site.pool.execute(
        "UPDATE spine.shard_position SET next_offset = 0, last_offset = -1 WHERE service = 'notifier'"
    )
    async with site.notifier(phones):
        await site.feed(told.acquired(sent), shard=0)
        await site.applied(0, told.seq, "notifier")
    assert await _compared(site, rules) == {
        "treated": {"users": 1, "opened": 1, "opens": 2, "sessions_ended": 2, "depth": 3.0},
        "holdout": {"users": 1, "opened": 1, "opens": 1, "sessions_ended": 0, "depth": None},
    }


async def test_whoever_is_stopped_behind_the_holdout_counts_as_treated(site: Site) -> None:
    """Those held out would have been stopped as often, and nobody can tell which of them."""
    rules = _rules(Limits([Cap(1, hours=24)]), **HALF)
    second = msgspec.structs.replace(rules.campaigns[0], id="second", holdout_percent=0.0)
    rules = msgspec.structs.replace(rules, campaigns=[*rules.campaigns, second])
    await site.install(rules)
    salt, told, phones = await _salt(site), Told(site), Phones()
    sent = [u for u in users_of(0, 40) if not held_out("welcome", salt, u, 50)][:3]
    now = site.clock.now_ms()
    capped, opted_out, _ = sent
    await site.feed(
        *(told.device(u) for u in sent), told.row(opted_out, "consent_set", {"push": False}),
        *(told.acquired(u, now - 1) for u in sent), shard=0,
    )  # fmt: skip
    async with site.notifier(phones) as running:
        await site.applied(0, told.seq, "notifier")
        messages = await _settled(site, running, 6)
        raised = msgspec.structs.replace(rules.campaigns[0], version=2)
        await site.install(msgspec.structs.replace(rules, campaigns=[raised, second]))

        async def in_force() -> bool:
            await running.book.refresh()
            return running.book.by_id["welcome"].campaign.version == 2

        await until(in_force)
        await site.feed(told.acquired(capped, now - 1), shard=0)
        await site.applied(0, told.seq, "notifier")
        messages = await _settled(site, running, 7)
    stopped = {m["reason"] for m in messages if m["campaign"] == "welcome" and m["campaign_version"] == 2}
    assert stopped == {"cap"}
    exposed = await site.rows("SELECT user_id, campaign_version, variant FROM notifier.exposure ORDER BY 2, 1")
    assert [(e["user_id"], e["campaign_version"], e["variant"]) for e in exposed] == [
        *((u, 1, "treated") for u in sorted(set(sent) - {opted_out})),
        (capped, 2, "treated"),
    ]
