"""What a tracking plan says: what an event's properties must be, and what becomes of an event where they are not."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Action = Literal["drop", "reject", "flag"]
"""What becomes of a violation. `drop`: the property it lies in is left out, the event is accepted. `reject`: the event
is a dead letter. `flag`: the event is accepted as it is. All three are counted."""

Unplanned = Literal["allow", "flag", "reject"]


class PlannedEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`schema`: JSON Schema, draft 2020-12, of the properties as the app posts them, before any are left out."""

    schema: dict[str, Any]
    on_violation: Action = "flag"


class TrackingPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`events` by name, with `$screen` and `$page` for those calls. An event is unplanned when neither the plan nor the
    pack's signals and property lists name it; a property of a planned event, when its schema does not name it."""

    events: dict[str, PlannedEvent] = {}
    unplanned_events: Unplanned = "allow"
    unplanned_properties: Unplanned = "allow"
