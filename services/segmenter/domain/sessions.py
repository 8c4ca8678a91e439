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
        hot.session_start_at = min(hot.session_start_at, at)
        hot.session_last_at = max(hot.session_last_at, at)
        hot.session_screens += screens
    hot.screens += screens


def mark_day(hot: Hot, day: int) -> None:
    """Count `day` (days since 1970) among the active days; exact within the last 64 days."""
    if hot.last_day < 0:
        hot.last_day, hot.bitmap, hot.active_days = day, 1, 1
        return
    back = hot.last_day - day
    if back < 0:
        hot.bitmap = ((hot.bitmap << -back) | 1) & (2**64 - 1) if -back < 64 else 1
        hot.last_day = day
        hot.active_days += 1
    elif back < 64 and not hot.bitmap >> back & 1:
        hot.bitmap |= 1 << back
        hot.active_days += 1
