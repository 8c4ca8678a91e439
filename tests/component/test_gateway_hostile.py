"""Bodies nobody should post, kept as data: each has the answer it must have, and leaves nothing behind but dead letters."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from tests.component.test_gateway import TEN, Client, client

__all__ = ["client"]

DATA = Path(__file__).parents[1] / "data" / "hostile_bodies.ndjson"
CASES: list[dict[str, Any]] = [json.loads(line) for line in DATA.read_text().splitlines()]


def body_of(case: dict[str, Any]) -> bytes:
    """`text`, `base64`, or `parts`: before, what is repeated, how often, behind."""
    if "parts" in case:
        before, repeated, times, behind = case["parts"]
        return f"{before}{repeated * times}{behind}".encode()
    return base64.b64decode(case["base64"]) if "base64" in case else str(case["text"]).encode()


async def test_each_hostile_body_is_answered_as_it_should_be(client: Client) -> None:
    """No 5xx. A 4xx leaves nothing in the log; a 200 leaves every event, and tells which ingest will reject, and why."""
    assert len(CASES) >= 200 and len({case["name"] for case in CASES}) == len(CASES)
    wrong = []
    for case in CASES:
        taken = len(client.outlet.taken)
        answer = await client.post(case["path"] + "?strict=1", body_of(case), **case.get("headers", {}))
        told = json.loads(answer.body)
        found = (answer.status, [r["reason"] for r in told["rejected"]] if answer.status == 200 else None)
        if found != (case["status"], case.get("rejected")) or (
            answer.status != 200 and len(client.outlet.taken) != taken
        ):
            wrong.append((case["name"], found, answer.body[:200]))
        assert client.collector._budget.used == 0
    assert not wrong, wrong[:10]
    assert (await client.post("/v1/batch", TEN)).status == 200
