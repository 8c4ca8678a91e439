"""How long does it take from a phone's post to the push, and where does the time go?

1,000 first app opens at 200/s, each of a new user with a device, each answered by one welcome push. The
target is p50 ≤ 100 ms and p99 ≤ 500 ms; `make bench` prints what this machine does today.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shared.process.clock import parse_instant
from tests.support.installation import Rig, installed

EVENTS = int(os.environ.get("BENCH_EVENTS", "1000"))
PER_SECOND = float(os.environ.get("BENCH_PER_SECOND", "200"))
_STAGES = """
SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY l.recorded_at - l.occurred_at) AS posted_to_applied,
    percentile_disc(0.5) WITHIN GROUP (ORDER BY m.planned_at - l.recorded_at) AS applied_to_planned,
    percentile_disc(0.5) WITHIN GROUP (ORDER BY m.attempted_at - m.planned_at) AS planned_to_attempted,
    percentile_disc(0.5) WITHIN GROUP (ORDER BY m.finished_at - m.attempted_at) AS attempted_to_outcome
FROM notifier.message m JOIN segmenter.ledger l ON l.shard = m.shard AND l.seq = m.cause_seq
WHERE m.user_id LIKE $1
"""


@pytest.mark.parametrize("kafka", ["embedded", pytest.param("apache", marks=pytest.mark.kafka)])
async def test_latency(tmp_path: Path, kafka: str) -> None:
    async with installed(tmp_path / "home", kafka=kafka, shards=32) as rig:
        await _measure(rig, "warm-up", 200)
        for number in range(3):
            measured = await _measure(rig, f"run{number}", EVENTS)
            print(f"\n{kafka} run {number + 1}: {measured}")


async def _measure(rig: Rig, tag: str, events: int) -> dict[str, Any]:
    posted: dict[str, float] = {}
    headers = {"Authorization": aiohttp.encode_basic_auth(rig.status["write_key"], "")}
    async with aiohttp.ClientSession() as http:

        async def post(user: str) -> None:
            posted[f"token-{user}"] = time.time()
            device = {"id": f"device-{user}", "type": "android", "token": f"token-{user}"}
            body = {"userId": user, "messageId": user, "event": "Application Opened", "context": {"device": device}}
            async with http.post(rig.status["gateway"] + "/v1/track", json=body, headers=headers) as answer:
                assert answer.status == 200, await answer.text()

        started = time.perf_counter()
        tasks = []
        for number in range(events):
            await asyncio.sleep(max(0.0, started + number / PER_SECOND - time.perf_counter()))
            tasks.append(asyncio.create_task(post(f"{tag}-{number}")))
        await asyncio.gather(*tasks)
        arrived: dict[str, float] = {}
        for _ in range(60):
            async with http.get(rig.status["sandbox"] + "/pushes?limit=20000") as answer:
                items = (await answer.json())["items"]
            arrived = {i["token"]: parse_instant(i["received_at"]) / 1000 for i in items if i["token"] in posted}
            if len(arrived) == events:
                break
            await asyncio.sleep(0.5)
    waits = sorted((at - posted[token]) * 1000 for token, at in arrived.items())
    cuts = statistics.quantiles(waits, n=100)
    async with rig.database() as connection:
        stages = dict(await connection.fetchrow(_STAGES, f"{tag}-%") or {})
    return {
        "pushes": len(waits),
        "p50_ms": round(cuts[49]),
        "p90_ms": round(cuts[89]),
        "p99_ms": round(cuts[98]),
        **stages,
    }
