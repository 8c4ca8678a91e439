"""Which visit an activity belongs to: a gap of 30 minutes of event time ends one."""

from __future__ import annotations

from services.segmenter.domain.state import Hot


def enter(hot: Hot, at: int, screens: int, gap_ms: int) -> None:
    """Count an activity at `at` into its session, on a fresh copy of `hot`.

    One that lies before the present session by more than the gap is late: it counts in the totals, but
    opens no session, so that late uploads never invent visits between visits already counted.
    """
    if hot.session_last_at < 0 or at > hot.session_last_at + gap_ms:
        hot.sessions += 1
        hot.session_start_at = hot.session_last_at = at
        hot.session_screens = screens
    elif at >= hot.session_start_at - gap_ms:
        if at > hot.session_last_at:
            hot.session_last_at = at
        elif at < hot.session_start_at:
            hot.session_start_at = at
        hot.session_screens += screens
    hot.screens += screens
