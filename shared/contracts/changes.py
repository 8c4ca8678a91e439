"""What of a user can change so that subscribers hear of it."""

from __future__ import annotations

from typing import Final, Literal

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
USER_ERASED: Final = "user_erased"
"""The last change of a user, and the last that names them."""
BY_ERASURE: Final = "erase"
"""The type of its cause, and that of whatever the user left because of it."""
