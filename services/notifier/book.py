"""Which campaigns are in force, and whether anything may be sent at all."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from services.notifier.domain.campaign import beginning, ending
from services.notifier.domain.frequency_cap import horizon_days
from services.notifier.domain.personalise import Compiled, compile_templates
from shared.contracts.rules import AlertTrigger, Campaign, Limits, Rules, ScheduleTrigger
from shared.data.control import RulesBook, installation
from shared.data.db import Pool, transaction
from shared.process.errors import Transient

log = logging.getLogger("perennial.notifier")
_POLL_SECONDS = 2.0


class Active(msgspec.Struct, frozen=True):
    """A campaign with its templates compiled."""

    campaign: Campaign
    compiled: Compiled


class Definitions(msgspec.Struct, frozen=True):
    """What one rules version says of campaigns, whole: who plans a batch takes one and keeps to it.

    `by_key`: those that a row of the feed may set going, and `ending` which rows may call one off, by `key_of`.
    `segment_titles` by id. `history_days`: how far back pushes already made matter (0: not at all)."""

    by_id: dict[str, Active] = {}
    by_key: dict[str, list[Active]] = {}
    ending: frozenset[str] = frozenset()
    segment_titles: dict[str, str] = {}
    consent_required: bool = False
    limits: Limits = Limits()
    history_days: int = 0


class CampaignBook:
    """The newest rules version's campaigns; `sending` is False while the kill switch is on."""

    def __init__(self, pool: Pool, rules: RulesBook) -> None:
        self._pool, self._rules = pool, rules
        self._version = 0
        self.all: list[Active] = []
        self.on_alert: list[Active] = []
        self.on_schedule: list[Active] = []
        self.by_id: dict[str, Active] = {}
        self.consent_required = False
        self.in_force = Definitions()
        self.salt = ""
        self.sending = True

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                await self.refresh()
            except Transient as error:
                log.warning("%s", error)

    async def refresh(self) -> None:
        async with transaction(self._pool) as connection:
            made = await installation(connection)
        self.salt, self.sending = made.salt, made.sending
        version = await self._rules.refresh(self._pool)
        if version != self._version:
            self._use(self._rules.known(version))
            self._version = version

    def _use(self, rules: Rules) -> None:
        self.all = [Active(campaign, compile_templates(campaign)) for campaign in rules.campaigns]
        self.by_id = {active.campaign.id: active for active in self.all}
        by_key: dict[str, list[Active]] = {}
        for active in self.all:
            for key in beginning(active.campaign.trigger):
                by_key.setdefault(key, []).append(active)
        self.on_alert = [a for a in self.all if isinstance(a.campaign.trigger, AlertTrigger)]
        self.on_schedule = [a for a in self.all if isinstance(a.campaign.trigger, ScheduleTrigger)]
        self.consent_required = "push" in rules.privacy.consent
        self.in_force = Definitions(
            self.by_id,
            by_key,
            frozenset(key for active in self.all for key in ending(active.campaign.trigger)),
            {segment.id: segment.title for segment in rules.segments},
            self.consent_required,
            rules.limits,
            horizon_days(rules.limits, rules.campaigns),
        )
