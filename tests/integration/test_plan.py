"""`perennial plan`: a plan from the events of a real log, and what a plan would do to them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from services.ingest import traffic
from services.ingest.domain.intake import posted
from services.ingest.traffic import Span
from shared.contracts.topics import Topic
from shared.process.clock import iso
from tests.support.people import HOUR, MINUTE
from tests.support.spine import SHARDS, Site, users_of

ROOT = Path(__file__).resolve().parents[2]


class Shell:
    """The command line, on a site's servers."""

    def __init__(self, site: Site, dsn: str, home: Path) -> None:
        self._env = os.environ | {
            "PERENNIAL_POSTGRES": dsn, "PERENNIAL_KAFKA": site.kafka, "PERENNIAL_PREFIX": site.names.prefix,
            "PERENNIAL_SHARDS": str(SHARDS), "PERENNIAL_HOME": str(home / "none"), "COLUMNS": "120",
        }  # fmt: skip

    async def run(self, *words: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.cli", "plan", *words, cwd=ROOT, env=self._env,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()


async def post(site: Site, user: str, name: str, hours_ago: float, **properties: Any) -> None:
    await site.post(user, name, site.clock.now_ms() - int(hours_ago * HOUR), properties=properties)


async def test_a_plan_from_traffic_accepts_it_and_a_stricter_one_says_what_it_would_refuse(
    site: Site, postgres: str, tmp_path: Path
) -> None:
    users = users_of(0, 2) + users_of(1, 1)
    for n in range(24):
        for user in users:
            if n < 12:  # of yesterday, by a release that told the price otherwise
                await post(site, user, "Bought", 26, price="9.90", channel="shop", note="ann@example.com")
            else:
                await post(site, user, "Bought", 1, price=9.9, channel="online", note="ann@example.com")
    await post(site, users[0], "Once", 1)
    shell, plan, strict = Shell(site, postgres, tmp_path), tmp_path / "plan.yaml", tmp_path / "strict.yaml"
    code, out, err = await shell.run("infer", "--out", str(plan))
    assert (code, out) == (0, ""), err
    assert "left out: events seen less than 20 times: 1\n" in err and "1 planned events" in err
    assert plan.read_text().splitlines()[2:] == [
        "tracking_plan:",
        "  events:",
        "    Bought:  # 72 events",
        "      on_violation: flag",
        "      schema:",
        "        required: [channel, note, price]",
        "        properties:",
        "          channel: {enum: [online, shop]}  # always",
        "          note: {type: string}  # always",
        "          price: {type: [string, number]}  # always; 9.9 to 9.9",
    ]
    _, out, err = await shell.run("check", str(plan))
    assert out.splitlines() == [
        "Bought: 72 events",
        "all other events: 1 events",
        "of 73 events: the plan agrees with all",
    ], err
    strict.write_text(plan.read_text().replace("[string, number]", "number").replace("flag", "reject"))
    code, out, err = await shell.run("check", str(strict), "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["reject"], told["items"][0]["reasons"]) == (
        36,
        [{"action": "reject", "reason": "schema_type:/price", "events": 36}],
    )
    today = iso(site.clock.now_ms() - 2 * HOUR)
    _, out, _ = await shell.run("check", str(strict), "--from", today)
    assert out.splitlines()[-1] == "of 37 events: the plan agrees with all"
    code, _, err = await shell.run("infer", "--out", str(plan))
    assert code == 1 and "exists already" in err
    strict.write_text(strict.read_text().replace("number", "amount"))
    code, _, err = await shell.run("check", str(strict))
    assert code == 1 and "strict.yaml:12: tracking_plan: Bought: schema /properties/price/type: expected one of" in err


async def test_a_span_of_traffic(site: Site) -> None:
    """By product time, and the last so many of it: as many of each shard, where it has them."""
    topic, now = site.topic(Topic.RAW), site.clock.now_ms()
    for shard, count in ((0, 10), (1, 3)):
        for n in range(count):
            await site.post(users_of(shard, 1)[0], f"{shard}/{n}", now - (count - n) * MINUTE)

    async def names(span: Span) -> list[str]:
        selected = await traffic.select(site.log, topic, SHARDS, span)
        found = [posted(record) async for page in traffic.pages(site.log, topic, selected) for record in page]
        assert len(found) == selected.total
        return sorted(event.name for event in found if event is not None)

    assert len(await names(Span())) == 13
    assert await names(Span(since=now - 2 * MINUTE)) == ["0/8", "0/9", "1/1", "1/2"]
    assert await names(Span(until=now - 9 * MINUTE)) == ["0/0"]
    assert await names(Span(now - 5 * MINUTE, now - 4 * MINUTE)) == ["0/5"]
    assert await names(Span(since=now)) == []
    assert await names(Span(most=8)) == ["0/5", "0/6", "0/7", "0/8", "0/9", "1/0", "1/1", "1/2"]
    assert await names(Span(most=1)) == ["0/9"]
