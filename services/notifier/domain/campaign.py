"""Which rows of the feed set a campaign going, what then happened once, and what its templates may name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from shared.contracts.events import FeedRow
from shared.contracts.rules import ActivityTrigger, AlertTrigger, StageTrigger, Trigger

_USER: dict[str, bool] = {
    "user.stage": True,
    "user.activity": True,
    "user.locale": True,
    "user.timezone": True,
    "campaign.id": False,
    "campaign.title": False,
}
_CHANGE: dict[str, bool] = {"change.from": True, "change.to": False, "occurred_at": False}
_ALERT: dict[str, bool] = {
    "alert.event": False,
    "alert.severity": False,
    "alert.headline": True,
    "alert.description": True,
    "alert.instruction": True,
    "alert.area": True,
    "alert.ends_at": True,
    "city.name": False,
    "city.state": True,
    "city.country": True,
    "city.timezone": True,
    "occurred_at": False,
}


class Occurrence(msgspec.Struct, frozen=True):
    """What happened once, and so is worth one message to a user at most.

    `id` names it within the campaign and is the same however often it is replayed. `valid_until` is the
    instant after which the message would be false (None: never). `collapse` names what is shown on the
    phone: a later message with the same one replaces it (default: `id`). `began_at` is the same for every
    message of a chain of alerts, so that all find the one message id (default: `occurred_at`). `joined` are
    the (id, began_at) of occurrences that turned out to be this one after messages may have been made of them.
    """

    id: str
    occurred_at: int
    valid_until: int | None = None
    variables: dict[str, Any] = {}
    collapse: str = ""
    began_at: int = 0
    joined: tuple[tuple[str, int], ...] = ()


def matches(trigger: Trigger, row: FeedRow) -> bool:
    """Whether the row is what a campaign waits for. An empty list matches any; alerts come from elsewhere."""
    match trigger:
        case StageTrigger():
            return row.kind == "stage_changed" and _moved(trigger.from_, trigger.to, row)
        case ActivityTrigger():
            return row.kind == "activity_changed" and _moved(trigger.from_, trigger.to, row)
        case AlertTrigger():
            return False


def _moved(sources: list[Any], targets: list[Any], row: FeedRow) -> bool:
    return (not sources or row.payload.get("from") in sources) and (not targets or row.payload["to"] in targets)


def occurrence_of(row: FeedRow) -> Occurrence:
    """The occurrence a stage or activity change is.

    Its id holds nothing of the log or the ledger (`gen`, `seq`, offsets): a change that is decided again after
    a restore is the same one, and is not sent again.
    """
    source, target = row.payload.get("from"), row.payload["to"]
    return Occurrence(
        id=f"{row.kind}:{source or ''}>{target}:{row.occurred_at}",
        occurred_at=row.occurred_at,
        variables={"change": {"from": source, "to": target}},
    )


def known_variables(trigger: Trigger) -> Mapping[str, bool]:
    """What a campaign's templates may name → whether it may be missing (see `template_check.analyse`)."""
    return _USER | (_ALERT if isinstance(trigger, AlertTrigger) else _CHANGE)
