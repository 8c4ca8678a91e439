"""What stands in for a decision that makes the code fail: the shard goes on, and what was lost is said."""

from __future__ import annotations

from msgspec.structs import replace

from shared.contracts.events import Accepted, Decision, Erase, Readmit, Rejected, TimeRecord

NOT_DECIDED = "bug:decide"
NOT_KEPT = "bug:record"


def instead(decision: Decision) -> Decision:
    """An event becomes a refusal. A refusal, which is only kept, becomes one that says nothing but where the bytes
    lie. Time and what was moved lose what they tell; the chain of numbers and the rules version always stay."""
    match decision:
        case Accepted():
            return Rejected(
                decision.src, decision.prev, decision.digest, decision.rules, decision.user_id, decision.message_id,
                NOT_DECIDED, decision.received_at, decision.source, decision.mode == "replay",
            )  # fmt: skip
        case Rejected():
            return replace(decision, user_id="", message_id="", reason=NOT_KEPT, source="")
        case Erase() | Readmit():
            return Rejected(
                decision.src, decision.prev, decision.digest, decision.rules, decision.user_id, decision.erasure_id,
                NOT_DECIDED, decision.received_at, "privacy",
            )  # fmt: skip
        case TimeRecord():
            return replace(decision, as_of=0)
    return decision
