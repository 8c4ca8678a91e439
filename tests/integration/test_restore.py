"""Whether an installation whose database was set back goes on without telling anybody twice: all of it, as run by `up`."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from services.local.up import SERVICES
from tests.support.installation import Rig, eventually, installed
from tests.support.traffic import instant

ROOT = Path(__file__).resolve().parents[2]
STOPPED = [name for name in SERVICES if name not in ("archive", "sandbox")]
SCHEMAS = ["spine", "segmenter", "notifier"]
_TABLES = """
SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY($1::text[]) AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1
"""
_MESSAGES = """
SELECT message_id, shard, user_id, campaign, variant, state, reason, provider, opened_at IS NOT NULL AS opened
FROM notifier.message ORDER BY message_id
"""
_OUTCOMES = "SELECT * FROM notifier.outcome ORDER BY shard, seq"


async def _keep(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Copy the services' tables, all as they are at one moment."""
    tables = [row[0] for row in await connection.fetch(_TABLES, SCHEMAS)]
    async with connection.transaction(isolation="repeatable_read"):
        await connection.execute("DROP SCHEMA IF EXISTS kept CASCADE; CREATE SCHEMA kept")
        for table in tables:
            await connection.execute(f"CREATE TABLE kept.{table.replace('.', '_')} AS SELECT * FROM {table}")


async def _put_back(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    tables = [row[0] for row in await connection.fetch(_TABLES, SCHEMAS)]
    async with connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")  # in any order
        await connection.execute(f"TRUNCATE {', '.join(tables)}")
        for table in tables:
            kept = f"SELECT * FROM kept.{table.replace('.', '_')}"
            await connection.execute(f"INSERT INTO {table} OVERRIDING SYSTEM VALUE {kept}")


async def _perennial(rig: Rig, *words: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli", *words, "--home", rig.status["home"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, out.decode()
    return out.decode()


async def _sandbox(rig: Rig, method: str, path: str, **how: Any) -> Any:
    async with aiohttp.ClientSession() as http, http.request(method, rig.status["sandbox"] + path, **how) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def _pushes(rig: Rig) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await _sandbox(rig, "GET", "/pushes?limit=1000"))["items"]
    return found


def _arrive(name: str, count: int) -> list[dict[str, Any]]:
    """People seen without having opened the app, every tenth of whom is held out of the win-back campaign; they
    open it, which is worth a welcome, and set a city."""
    now = time.time()
    events = []
    for n in range(count):
        user = f"{name}-{n}"
        device = {"device": {"id": f"d-{user}", "type": "ios", "token": f"t-{user}"}}
        for step, (event, properties) in enumerate(
            [
                ("Application Backgrounded", {}),
                ("Application Opened", {}),
                ("Default City Set", {"city": "Dallas, TX"}),
            ]
        ):
            events.append(
                {
                    "type": "track", "event": event, "userId": user, "messageId": f"{user}-{step}",
                    "timestamp": instant(now + step / 1000), "properties": properties, "context": device,
                }
            )  # fmt: skip
    return events


async def test_a_database_set_back_tells_nobody_twice(tmp_path: Path) -> None:
    """What the services did since the copy they do again, from the log; only the pushes must not go out again."""
    async with installed(tmp_path, shards=4) as rig, rig.database() as connection:
        await rig.post(_arrive("early", 30))
        await rig.drained()
        await _sandbox(rig, "PUT", "/behaviour", json={"provider": "fcm", "mode": "ok", "delay_ms": 400})
        await rig.post(_arrive("meanwhile", 60))

        async def some_on_the_wire() -> str:
            await _keep(connection)
            open_ = await connection.fetchval("SELECT count(*) FROM kept.notifier_message WHERE state = 'attempted'")
            return "" if open_ else "no message is on the wire"

        await eventually(some_on_the_wire, 20, every=0.01)
        await _sandbox(rig, "PUT", "/behaviour", json={"provider": "fcm", "mode": "ok"})
        await rig.post(_arrive("late", 60))
        await rig.drained()
        late = next(p for p in await _pushes(rig) if p["token"] == "t-late-0")
        tap = {"event": "Push Notification Tapped", "properties": {"message_id": late["data"]["message_id"]}}
        alert = {
            "id": "storm", "kind": "alert", "areas": [{"city": "Dallas, TX"}], "severity": "Extreme",
            "starts_at": instant(time.time()), "ends_at": instant(time.time() + 3600), "data": {"event": "Tornado"},
        }  # fmt: skip
        await rig.alert(alert)
        await rig.post([{"type": "track", "userId": "late-0", "messageId": "tap", **tap}])
        await rig.drained()
        messages, outcomes = await connection.fetch(_MESSAGES), await connection.fetch(_OUTCOMES)
        pushes = await _pushes(rig)
        assert {m["state"] for m in messages} == {"sent", "held_out"}

        assert rig.installation.children is not None
        await rig.installation.children.stop(names=STOPPED)
        await _put_back(connection)
        lost = len(messages) - await connection.fetchval("SELECT count(*) FROM notifier.message")
        assert lost > 120, "too little was lost to show anything"
        said = await _perennial(rig, "restore")
        assert f"{lost} messages put back" in said, said
        assert "services are running" not in said
        assert await connection.fetch(_MESSAGES) == messages
        assert await connection.fetch(_OUTCOMES) == outcomes

        await rig.installation.children.start(STOPPED)
        await rig.drained()
        await rig.post(_arrive("after", 20))
        await rig.drained()
        after = (await _pushes(rig))[len(pushes) :]
        assert {p["token"] for p in after} == {f"t-after-{n}" for n in range(20)}
        of_one = Counter((p["token"], p["data"]["campaign"]) for p in await _pushes(rig))
        assert max(of_one.values()) == 1, of_one.most_common(5)
        assert await connection.fetchval("SELECT count(*) FROM notifier.outcome WHERE outcome = 'opened'") == 1

        said = await _perennial(rig, "rebuild")
        assert "rebuilt: 4 of 4 shards" in said, said
        await rig.post(_arrive("last", 10))
        await rig.drained()
        welcomed = {p["token"] for p in await _pushes(rig) if p["data"]["campaign"] == "welcome"}
        assert {f"t-last-{n}" for n in range(10)} <= welcomed
        of_one = Counter((p["token"], p["data"]["campaign"]) for p in await _pushes(rig))
        assert max(of_one.values()) == 1, of_one.most_common(5)
        assert "services are running" in await _perennial(rig, "restore")
