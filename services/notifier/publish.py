"""What an outcome becomes on `push.outcomes.v1`."""

from __future__ import annotations

import msgspec

from services.notifier.messages import OutcomeRow
from shared.contracts.cloudevents import headers
from shared.contracts.topics import Names, Topic
from shared.kafka.relay import Published
from shared.kafka.sender import Record
from shared.process.clock import iso

_json = msgspec.json.Encoder().encode


class Publisher:
    def __init__(self, names: Names) -> None:
        self._topic = names.topic(Topic.OUTCOMES)
        self._source = f"/perennial/{names.prefix}notifier"

    def row(self, row: OutcomeRow) -> Published:
        value = {
            "message_id": row.message_id,
            "user_id": row.user_id,
            "campaign": row.campaign,
            "variant": row.variant,
            "outcome": row.outcome,
            "reason": row.reason,
            "provider": row.provider,
            "chain": row.chain,
            "occurred_at": iso(row.occurred_at),
            "shard": row.shard,
            "gen": row.gen,
            "seq": row.seq,
        }
        kind = headers(
            event_id=f"{row.shard}-{row.gen}-{row.seq}",
            source=self._source,
            kind=f"perennial.push.{row.outcome}.v1",
            time=iso(row.recorded_at),
            subject=row.user_id,
        )
        return Published(row.seq, [(self._topic, Record(row.user_id.encode(), _json(value), kind))])
