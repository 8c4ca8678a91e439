"""How many pushes a second the dispatcher sends, each committed before and after its call, beside aiohttp alone.

The messages lie in the table as intents, as if planned; the notifier takes them up when it starts. What takes the
pushes is a stand-in, for the push sandbox checks and remembers each and would be the limit.
"""

from __future__ import annotations

import statistics

from services.bench.figures import Figure, Round, throughput, used
from services.bench.gateway import memory
from services.bench.plan import Plan, alternately
from services.bench.site import Servers, Site, site, until
from services.local.home import OFFSETS
from services.notifier import messages
from services.notifier.messages import Message
from services.notifier.settings import Settings
from shared.contracts.identifiers import fresh_id, push_message_id
from shared.process.clock import Clock, month_of

_TARGET = 10_000
_HOUR_MS = 3_600_000
_SPAN = """
SELECT count(*) AS sent, max(finished_at) - min(attempted_at) AS ms FROM notifier.message
WHERE run_id = $1 AND state = 'sent'
"""
_TITLE, _BODY = "Welcome!", "Set your city and we will warn you before severe weather gets there."


async def measure(servers: Servers, plan: Plan) -> list[Figure]:
    async with site(servers, ["notifier"], standin=True) as here:
        most = Settings.model_fields["concurrent_sends"].default
        url = f"http://127.0.0.1:{servers.port + OFFSETS['sandbox']}"
        name = push_message_id("2611", "welcome", 1, "u-0000000", "")
        push = {
            "message_id": name, "token": "token-u-0000000", "title": _TITLE, "body": _BODY, "collapse_id": "welcome",
            "data": {"message_id": name, "campaign": "welcome"}, "ttl_seconds": 86_400, "high_priority": False,
        }  # fmt: skip
        await here.helper("bare push", "ceilings.push", {"url": url, "push": push, "at_once": most})
        backlog = plan.backlog(_TARGET)

        async def product() -> Round:
            return await _product(here, backlog, plan.patience)

        async def ceiling() -> Round:
            here.freeze("notifier")
            try:
                return await here.asked("bare push", {"events": backlog})
            finally:
                here.thaw("notifier")

        await ceiling()
        rounds = await alternately(plan.rounds, product, ceiling)
        note = "to a stand-in for FCM: the push sandbox would be the limit"
        sent = throughput("dispatch", "dispatch, with ledger", *rounds, unit="pushes/s", note=note)
        return [sent, _per_core(*rounds), memory(here, "notifier")]


def _per_core(product: list[Round], ceiling: list[Round]) -> Figure:
    """What one core of the sender's alone would send: the figure of the target."""
    found = [one.events / one.cpu["notifier"] for one in product if "notifier" in one.cpu]
    bare = [one.events / one.cpu["bare push"] for one in ceiling if "bare push" in one.cpu]
    return Figure(
        "dispatch_per_core", "dispatch, per core of the notifier", "pushes/s",
        statistics.median(found) if found else 0.0, statistics.median(bare) if bare else None, _TARGET,
        values=found, ceiling_values=bare,
    )  # fmt: skip


async def _product(here: Site, backlog: int, patience: float) -> Round:
    """A notifier that starts with so many intents; timed by the rows themselves, from first attempt to last outcome."""
    run = fresh_id("bench-")
    await here.children.stop(names=["notifier"])
    await _plan(here, run, backlog)
    before = await _taken(here)
    await here.children.start(["notifier"])

    async def sending() -> bool:
        return await _taken(here) > before

    await until(sending, 30 + patience, every=0.01)
    began, first = here.cpu(), await _taken(here)

    async def all_taken() -> bool:
        return await _taken(here) >= before + backlog

    async def settled() -> bool:
        found = await here.database.fetchrow(_SPAN, run)
        return found is not None and found["sent"] == backlog

    await until(all_taken, patience)
    await until(settled, patience, every=0.05)
    cpu = used(began, here.cpu())
    whole = backlog / (before + backlog - first)
    row = await here.database.fetchrow(_SPAN, run)
    assert row is not None
    return Round(backlog, row["ms"] / 1000, {name: s * whole for name, s in cpu.items()})


async def _taken(here: Site) -> int:
    async with here.http.get(f"{here.installation.url('sandbox')}/pushes/count") as answer:
        return int((await answer.json())["count"])


async def _plan(here: Site, run: str, backlog: int) -> None:
    """Messages to as many users; planned so late that they count as fresh once the notifier is up."""
    now = Clock().real_ms()
    month = month_of(now)
    several = []
    for n in range(backlog):
        user = f"u-{n:07d}"
        several.append(
            Message(
                month=month, message_id=push_message_id(month, "welcome", 1, user, run), shard=here.shard_of(user),
                user_id=user, campaign="welcome", campaign_version=1, variant="treated", occurrence=run, state="intent",
                planned_at=now + 60_000, device_id=f"phone-{user}", token=f"token-{user}", title=_TITLE, body=_BODY,
                collapse_id="welcome", expires_at=now + 24 * _HOUR_MS, run_id=run,
            )
        )  # fmt: skip
    async with here.database.transaction():
        await messages.make_month(here.database, month)
        await messages.insert(here.database, several)
