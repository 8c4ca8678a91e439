"""What of a user can change so that subscribers hear of it."""

from __future__ import annotations

from typing import Literal

ChangeKind = Literal[
    "stage_changed",
    "activity_changed",
    "segment_entered",
    "segment_exited",
    "cohort_entered",
    "cohort_exited",
    "user_merged",
    "user_erased",
]
