"""What a demo tells at its end and on its way, for whoever reads it for the first time."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from services.demo import closing
from services.demo.progress import Progress

FOLDER = Path("/checkout")


@pytest.mark.parametrize(
    ("program", "home", "told"),
    [
        (".venv/bin/perennial", ".perennial", (".venv/bin/perennial", "")),
        ("/checkout/.venv/bin/perennial", ".perennial", (".venv/bin/perennial", "")),
        ("/elsewhere/bin/perennial", "my home", ("/elsewhere/bin/perennial", " --home 'my home'")),
        ("/checkout/services/cli.py", "/tmp/h", ("perennial", " --home /tmp/h")),
    ],
)
def test_commands_are_told_as_they_can_be_typed(program: str, home: str, told: tuple[str, str]) -> None:
    """Pasted into the same shell they must find the program and the home."""
    assert closing.as_typed(program, FOLDER / home, FOLDER) == told


def test_the_offered_curl_is_one_command_that_posts_an_event() -> None:
    words = shlex.split(closing.curl("http://g", "wk_1", "you-1"))
    assert words[:3] == ["curl", "-u", "wk_1:"] and words[-1] == "http://g/v1/track"
    assert json.loads(words[words.index("-d") + 1])["userId"] == "you-1"


def _lift(found: dict[str, float] | None) -> dict[str, Any]:
    arms = {
        "treated": {"users": 160, "opened_percent": 35.0},
        "holdout": {"users": 40, "opened_percent": 12.5},
    }
    more = {"minimum_users": 30, "confidence_percent": 95, "still_open": 200}
    return {"simulated": True, "campaigns": {"win_back": {**arms, **more, "opened_percent": found}}}


def test_lift_is_told_as_simulated_and_with_its_interval_or_not_at_all() -> None:
    told = "\n".join(closing._lift(_lift({"difference": 22.5, "low": 7.25, "high": 32.0})))
    assert "simulated" in told and "+22.5 points (7.2 to 32.0, 95 %)" in told
    told = "\n".join(closing._lift(_lift(None)))
    assert "not enough data: 160 treated, 40 held out; 30 on each side" in told and "points" not in told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_display_that_is_wiped_and_others_get_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        progress = Progress(stream)
        for n in range(3):
            progress.now("phones set up", {"events": f"{n} posted", "suppressed": ""})
        progress.rest()
        progress.say("stopped")
    assert file.getvalue() == "· phones set up: events 0 posted\n· stopped\n"
    assert "2 posted" in terminal.getvalue() and "\x1b[?25h" in terminal.getvalue()  # the cursor is back
    assert terminal.getvalue().rstrip().endswith("· stopped")
