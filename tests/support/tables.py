"""Which rows of a database hold a text, wherever it stands: in a column, inside JSON, or inside packed bytes."""

from __future__ import annotations

from shared.data.db import Connection, Pool

_TABLES = """
SELECT n.nspname AS schema, c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') ORDER BY 1, 2
"""


async def rows_that_hold(database: Pool | Connection, text: str) -> list[tuple[str, str]]:
    """(table, row as text) of every table of every schema; bytes are looked through as bytes."""
    packed = text.encode().hex()
    found = []
    for table in await database.fetch(_TABLES):
        where = f'"{table["schema"]}"."{table["name"]}"'
        rows = await database.fetch(
            f"SELECT t::text AS row FROM {where} AS t WHERE strpos(t::text, $1) > 0 OR strpos(t::text, $2) > 0",
            text,
            packed,
        )
        found += [(f"{table['schema']}.{table['name']}", row["row"]) for row in rows]
    return found
