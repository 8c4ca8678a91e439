"""Everything that is kept here of one user, for the user: as rows of plain values, with nothing left out."""

from __future__ import annotations

from typing import Any

import msgspec

from services.notifier.domain.recipient import Recipient, decode_recipient
from shared.contracts.identifiers import shard_of
from shared.data.db import Connection

_RECIPIENT = "SELECT body FROM notifier.recipient WHERE shard = $1 AND user_id = $2"
_TABLES = {
    "messages": "SELECT * FROM notifier.message WHERE shard = $1 AND user_id = $2 ORDER BY planned_at, message_id",
    "exposures": """
SELECT * FROM notifier.exposure WHERE shard = $1 AND user_id = $2 ORDER BY exposed_at, campaign, campaign_version
""",
    "outcomes": "SELECT * FROM notifier.outcome WHERE shard = $1 AND user_id = $2 ORDER BY seq",
}


async def export(connection: Connection, shards: int, user_id: str) -> dict[str, Any]:
    """The user as the notifier keeps them, all of one moment; `known`: whether there is anything. Instants are
    milliseconds since 1970, as in the tables."""
    whose = (shard_of(user_id, shards), user_id)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        body = await connection.fetchval(_RECIPIENT, *whose)
        rows = {name: [dict(row) for row in await connection.fetch(query, *whose)] for name, query in _TABLES.items()}
    return {
        "user_id": user_id,
        "known": body is not None or any(rows.values()),
        "recipient": _named(decode_recipient(body)) if body is not None else None,
        **rows,
    }


def _named(recipient: Recipient) -> dict[str, Any]:
    """By the names of its fields: kept rows have places only."""
    values = {name: getattr(recipient, name) for name in recipient.__struct_fields__}
    return values | {"devices": [msgspec.structs.asdict(device) for device in recipient.devices]}
