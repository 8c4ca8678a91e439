"""How a test runs a real Prometheus on the shipped configuration, and asks it.

The shipped rules wait for minutes. `hastened` is a copy of them in which every time is divided by one number: the spans
that expressions look back over, the ages they compare, and `for`. Shares and counts stay as they are.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import yaml

from services.local.program import Program
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "deploy/prometheus"
DASHBOARD = ROOT / "deploy/grafana/road-of-an-event.json"
JOBS = ("gateway", "ingest", "segmenter", "notifier")


def tool(name: str) -> str:
    """The path of `prometheus` or `promtool`; skips, and says why, where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(
            f"NOT TESTED WITH PROMETHEUS: {name} is not installed (Debian and Ubuntu: apt-get install prometheus)"
        )
    return found


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False)


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def queries(window: str = "5m") -> list[tuple[str, str]]:
    """(panel, expression) of the dashboard; `window` stands in for what Grafana makes of the scrape interval."""
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", window))
        for panel in dashboard()["panels"]
        for target in panel.get("targets", [])
    ]


def configuration(targets: Mapping[str, str], every: str = "1s") -> dict[str, Any]:
    """The shipped configuration, with these URLs in the place of the names that only compose knows."""
    found: dict[str, Any] = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    found["global"] = {"scrape_interval": every, "evaluation_interval": every}
    found["rule_files"] = [str(SHIPPED / name) for name in found["rule_files"]]
    for job in found["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [urlsplit(targets[job["job_name"]]).netloc]}]
    return found


def hastened(times: int) -> dict[str, Any]:
    """The shipped rules, that many times as fast; what they find carries the label `hastened`."""
    found: dict[str, Any] = yaml.safe_load((SHIPPED / "rules.yml").read_text())
    for rule in found["groups"][0]["rules"]:
        looked = re.sub(r"\[(\d+)m\]", lambda m: f"[{_hastened(m[1], times)}]", rule["expr"])
        rule["expr"] = re.sub(r"(_(?:age|held)_seconds\) > )(\d+)", lambda m: f"{m[1]}{int(m[2]) / times:g}", looked)
        if "for" in rule:
            rule["for"] = _hastened(rule["for"].removesuffix("m"), times)
        rule["labels"]["hastened"] = str(times)
    found["groups"][0]["name"] += " hastened"
    return found


def _hastened(minutes: str, times: int) -> str:
    return f"{int(minutes) * 60_000 // times}ms"


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url, self._http = url, http

    async def get(self, path: str, **parameters: str) -> Any:
        async with self._http.get(f"{self.url}/api/v1/{path}", params=parameters) as answer:
            body = await answer.json()
            assert body["status"] == "success", f"{parameters}: {body.get('error')}"
            return body["data"]

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The series an expression returns now; fails where it does not parse."""
        found: list[dict[str, Any]] = (await self.get("query", query=expression))["result"]
        return found

    async def value(self, expression: str) -> float:
        found = await self.query(expression)
        return float(found[0]["value"][1]) if found else 0.0

    async def firing(self, *, hastened: bool) -> dict[str, list[dict[str, str]]]:
        """The labels of what fires now, by alert; of the hastened rules or of the shipped ones."""
        which = "!=" if hastened else "="
        found: dict[str, list[dict[str, str]]] = {}
        for one in await self.query(f'ALERTS{{alertstate="firing", hastened{which}""}}'):
            found.setdefault(one["metric"]["alertname"], []).append(one["metric"])
        return found


@asynccontextmanager
async def running(home: Path, targets: Mapping[str, str], times: int = 20) -> AsyncIterator[Prometheus]:
    """A Prometheus that asks `targets` (URL by job) every second, with the shipped rules and the same `hastened`."""
    home.mkdir(exist_ok=True)
    config, fast, port = home / "prometheus.yml", home / "hastened.yml", free_port()
    told = configuration(targets)
    told["rule_files"].append(str(fast))
    fast.write_text(yaml.safe_dump(hastened(times)))
    config.write_text(yaml.safe_dump(told))
    program = Program(
        "prometheus",
        [
            tool("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={home / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        log=home / "prometheus.log",
    )
    await program.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http:
            url = f"http://127.0.0.1:{port}"
            async with asyncio.timeout(30):
                while not await _ready(http, url):
                    assert program.pid is not None, program.last_words(3)
                    await asyncio.sleep(0.1)
            yield Prometheus(url, http)
    finally:
        await program.stop()


async def _ready(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(f"{url}/-/ready") as answer:
            return answer.status == 200
    except (aiohttp.ClientError, OSError):
        return False
