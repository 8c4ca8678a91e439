"""Does `perennial demo` show the whole road, the same each time, and leave nothing behind?"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.ports import free_base

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--phones", "150", "--rate", "150", "--seconds", "2")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def perennial(*arguments: str, **more: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.cli",
        *arguments,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        **more,
    )


@asynccontextmanager
async def a_demo(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await perennial("demo", *arguments)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            try:
                await asyncio.wait_for(process.communicate(), 40)
            except TimeoutError:
                process.kill()
                await process.wait()


def complaints(home: Path) -> list[str]:
    """What the services found worth a warning."""
    found = []
    for log in (home / "logs").glob("*.log"):
        for line in log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and record.get("level") not in (None, "info", "debug"):
                    found.append(line)
    return found


async def summary_of(home: Path, *more: str) -> dict[str, Any]:
    options = ("--once", "--json", "-", "--seed", "3", "--home", str(home), "--port", str(free_base()))
    async with a_demo(*SMALL, *options, *more) as process:
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert complaints(home) == []
    found: dict[str, Any] = json.loads(out)
    return found


async def test_the_same_seed_gives_the_same_counts(tmp_path: Path) -> None:
    """Only if nothing is lost, doubled or counted by who caused it do two runs of a distributed system agree."""
    first, second = await summary_of(tmp_path / "a"), await summary_of(tmp_path / "b")
    seconds = first.pop("seconds")
    second.pop("seconds")
    assert first == second
    assert seconds["setup"] < seconds["first_push"] < seconds["total"]

    events, pushes, alerts = first["events"], first["pushes"], first["alerts"]
    assert first["ok"]
    assert first["users"] == 150 == sum(first["stage"].values()) == sum(first["activity"].values())
    assert events["posted"] == events["accepted"] + events["rejected"]
    assert events["rejected"] > 0 < events["duplicates"]
    assert (alerts["features"], alerts["actual"], alerts["land"] + alerts["marine"]) == (529, 529, 529)
    assert pushes["sent"] == pushes["received_by_sandbox"] > 0
    suppressed = sum(pushes["suppressed"].values())
    ended = pushes["sent"] + pushes["held_out"] + suppressed + pushes["failed"]
    assert pushes["planned"] == ended + pushes["waiting"] and pushes["waiting"] > 0
    assert pushes["suppressed"]["called_off"] == pushes["campaigns"]["onboarding"]["suppressed"]
    # apps deleted before: the provider says so, once each
    assert pushes["failed_because"] == {"token_dead": pushes["failed"]} and pushes["failed"] > 0
    assert first["activity"]["uninstalled"] > 0
    win_back = first["lift"]["campaigns"]["win_back"]
    sent, out = pushes["campaigns"]["win_back"]["sent"], pushes["campaigns"]["win_back"]["held_out"]
    assert win_back["treated"]["users"] == sent + pushes["failed"]
    assert (win_back["holdout"]["users"], win_back["enough"]) == (out, False)
    assert win_back["treated"]["opened"] > 0
    assert pushes["campaigns"]["severe_alert"].get("held_out", 0) == 0
    assert len(first["cohorts"]) == 10

    again = await summary_of(tmp_path / "b")
    assert again["ok"]
    assert again["users"] > 150
    assert again["pushes"]["sent"] == again["pushes"]["received_by_sandbox"] > 0


async def until(stream: asyncio.StreamReader, word: str) -> list[str]:
    lines: list[str] = []
    async with asyncio.timeout(120):
        async for line in stream:
            lines.append(line.decode().rstrip("\n"))
            if word in lines[-1]:
                return lines
    raise AssertionError("\n".join(lines))


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def curl_of(lines: list[str]) -> list[str]:
    """The words of the command that the demo offers."""
    start = next(n for n, line in enumerate(lines) if line.strip().startswith("curl "))
    return shlex.split("\n".join(lines[start : start + 3]))


async def test_it_goes_on_takes_a_curl_and_an_alert_and_leaves_no_process(tmp_path: Path) -> None:
    home, port = tmp_path / "home", free_base()
    async with a_demo(*SMALL, "--home", str(home), "--port", str(port)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = await until(process.stdout, "perennial follow")
        await until(process.stderr, "Ctrl-C")
        status = json.loads((home / "status.json").read_text())
        for url in (status["gateway"], status["segmenter"], status["notifier"], status["sandbox"]):
            assert any(url in line for line in lines)

        words = curl_of(lines)
        token = json.loads(words[words.index("-d") + 1])["context"]["device"]["token"]
        asked = await asyncio.create_subprocess_exec(*words, "--silent", stdout=asyncio.subprocess.PIPE)
        assert json.loads((await asked.communicate())[0]) == {"success": True}
        async with asyncio.timeout(10):
            while not (found := get(f"{status['sandbox']}/pushes?token={token}")["items"]):
                await asyncio.sleep(0.05)
        assert found[0]["data"]["campaign"] == "welcome"
        why = get(f"{status['sandbox']}/pushes/{found[0]['n']}/why")
        assert why["message"]["message_id"] == found[0]["data"]["message_id"]
        assert (why["ledger"]["kind"], why["ledger"]["to"], why["context"]) == ("stage_changed", "acquire", None)
        assert why["ledger"]["raw"]["offset"] == why["message"]["cause"]["raw"]["offset"]
        assert [gate["gate"] for gate in why["message"]["gates"]][-1] == "caps"
        assert status["admin_key"] not in json.dumps(why) + read(f"{status['sandbox']}/")

        told = await perennial("demo", "alert", "tornado warning", "New York", "--home", str(home))
        out, err = await told.communicate()
        assert told.returncode == 0, err.decode()
        assert "Tornado Warning for New York City, NY" in out.decode()
        assert "pushes sent: " in out.decode()
        alerted = get(f"{status['sandbox']}/pushes?since={found[0]['n']}")["items"]
        why = get(f"{status['sandbox']}/pushes/{alerted[-1]['n']}/why")
        assert (why["context"]["facts"]["event"], why["ledger"]["kind"]) == ("Tornado Warning", "cohort_entered")

        # whatever the hour is
        await until(process.stderr, "morning_forecast, as if it were its hour everywhere")
        told = await perennial("demo", "forecast", "New York", "--home", str(home))
        out, err = await told.communicate()
        assert told.returncode == 0, err.decode()
        assert "morning_forecast for New York City, NY" in out.decode()
        bodies = {p["body"] for p in get(f"{status['sandbox']}/pushes?limit=10000")["items"] if "made up" in p["title"]}
        assert bodies and all("°F" in body for body in bodies)

        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 6
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.communicate(), 40)
        assert process.returncode == 0
        _, alive = psutil.wait_procs(children, timeout=5)
        assert alive == []
    assert complaints(home) == []
