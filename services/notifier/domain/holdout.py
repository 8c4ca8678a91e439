"""Who is held out of a campaign: exposed, but not sent."""

from __future__ import annotations

from shared.contracts.identifiers import bucket

BUCKETS = 10_000


def held_out(campaign_id: str, salt: str, assignment_id: str, percent: float) -> bool:
    """Whether the user is in the campaign's holdout of `percent` (0…100, in steps of 0.01).

    It depends on nothing that changes: the same user answers alike at every occurrence, on every replica,
    and stays held out when the percentage grows. Campaigns draw independently of each other.
    """
    return bucket(f"{salt}:{campaign_id}", assignment_id, BUCKETS) < round(percent * BUCKETS / 100)
