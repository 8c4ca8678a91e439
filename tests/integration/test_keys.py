"""Keys in the database: one takes another's place, some allow less than others, and what was done with them is told."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi import Request

from services.ingest.gateway.keys import KeyBook
from services.ingest.gateway.keys_feed import KeysFeed
from services.ingest.gateway.settings import GatewaySettings
from services.local import keys
from services.local.program import LocalError
from shared.data.db import Pool
from shared.data.keys import AdminKeys
from shared.process.http import ApiError, Health
from tests.integration.test_gateway_process import EVENT, SHARDS, MakeTopics, gateway


async def valid(dsn: str, tmp_path: Path) -> KeyBook:
    """The write keys in force, as a gateway reads them."""
    book = KeyBook()
    feed = KeysFeed(book, dsn, tmp_path / "kept" / "keys.json", GatewaySettings(), Health())
    assert await feed.poll()
    await feed.stop()
    return book


async def test_a_rotated_key_works_until_its_overlap_ends(postgres: str, database: Pool, tmp_path: Path) -> None:
    async with database.acquire() as connection:
        home = tmp_path / "keys.json"
        old = await keys.create(connection, "write", "shop", events_per_second=70)
        new = await keys.rotate(connection, "shop", timedelta(hours=1), home)
        book = await valid(postgres, tmp_path)
        assert {f.source for f in book.facts().values()} == {"shop"}
        assert book.by_key(old) is not None and book.by_key(new) is not None
        assert {f.events_per_second for f in book.facts().values()} == {70}, "the limit stays"
        newest = await keys.rotate(connection, "shop", timedelta(), home)
        book = await valid(postgres, tmp_path)
        assert [book.by_key(key) is not None for key in (old, new, newest)] == [False, False, True]
        await keys.revoke(connection, "shop")
        assert (await valid(postgres, tmp_path)).facts() == {}
        with pytest.raises(LocalError, match="no valid key"):
            await keys.rotate(connection, "shop", timedelta(), home)
        assert [row["valid"] for row in await keys.listed(connection)] == [False] * 3


async def test_the_homes_own_key_is_rotated_where_it_is_kept(postgres: str, database: Pool, tmp_path: Path) -> None:
    """Otherwise the next start would take the old key for lost and make the rotated one invalid."""
    path = tmp_path / "keys.json"
    async with database.acquire() as connection:
        first = await keys.ensure(connection, path)
        rotated = await keys.rotate(connection, "app", timedelta(hours=1), path)
        assert keys.read(path) == {"write": rotated, "admin": first.admin}
        assert (await keys.ensure(connection, path)).write == rotated
        assert (await valid(postgres, tmp_path)).by_key(first.write) is not None


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1.5h", "24 h", "1y"])
async def test_a_span_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(LocalError, match="is no span"):
        keys.span(text)


async def test_an_admin_key_allows_what_its_scopes_say(database: Pool) -> None:
    async with database.acquire() as connection:
        made = {
            scopes: await keys.create(connection, "admin", "-".join(scopes), scopes=scopes)
            for scopes in (("read",), ("write",), ("read", "privacy"))
        }
    admin, refused = AdminKeys(database), list[ApiError]()

    async def status(method: str, key: str, privacy: bool = False) -> int:
        headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
        request = Request({"type": "http", "method": method, "path": "/", "headers": headers})
        try:
            await (admin.allow("privacy") if privacy else admin.require)(request)
        except ApiError as error:
            refused.append(error)
            return error.status
        return 200

    told = {
        scopes: [await status(m, key) for m in ("GET", "HEAD", "POST", "PUT", "DELETE")] for scopes, key in made.items()
    }
    assert told[("read",)] == told["read", "privacy"] == [200, 200, 403, 403, 403]
    assert told[("write",)] == [403, 403, 200, 200, 200]
    assert [await status("DELETE", key, privacy=True) for key in made.values()] == [403, 403, 200]
    needs = [(e.code, e.details["needs"]) for e in refused if e.details]
    assert needs == [("forbidden", n) for n in ["write"] * 3 + ["read"] * 2 + ["write"] * 3 + ["privacy"] * 2]
    assert await status("GET", "") == await status("GET", "ak_nobody") == 401


async def test_use_is_told_and_rejects_throttle(
    embedded_kafka: str, topics_of: MakeTopics, postgres: str, database: Pool, tmp_path: Path
) -> None:
    """What ingest found of a source's events reaches the gateway by way of the database."""
    names = await topics_of(embedded_kafka, SHARDS)
    async with database.acquire() as connection:
        key = await keys.create(connection, "write", "shop")
        async with gateway(embedded_kafka, postgres, tmp_path, names.prefix) as running:
            await running.until(200)
            body = {"batch": [EVENT] * 30, "writeKey": key}
            assert (await running.post("/v1/batch", body, auth=False))[0] == 200
            assert (await running.post("/v1/track", {"writeKey": key}, auth=False))[0] == 400
            await connection.execute(
                "INSERT INTO control.source_verdict SELECT 'shop', extract(epoch FROM now())::bigint / 60, 10, 5000"
            )
            async with asyncio.timeout(10):
                while (answer := await running.post("/v1/batch", body, auth=False))[0] == 200:
                    await asyncio.sleep(0.02)
            assert answer[1]["code"] == "too_many_rejects", answer
            running.process.send_signal(signal.SIGTERM)
            await running.process.communicate()
        [row] = await keys.listed(connection)
        assert row["events"] >= 30 and row["events"] % 30 == 0
        assert row["refused"] >= 1 and row["last_used_at"] is not None and row["rejected_today"] == 5000
        assert "events/s" not in keys.line(row) and "5000 events of the source rejected" in keys.line(row)
