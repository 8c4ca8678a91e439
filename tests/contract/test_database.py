"""Does every statement in the code fit the schema that the migrations make, and who may read what?"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from services.notifier import messages
from shared.data import ledger
from shared.data.db import Pool

ROOT = Path(__file__).resolve().parents[2]
PARTS = (
    "shared",
    "services/ingest",
    "services/segmenter",
    "services/notifier",
    "services/archive",
    "services/local",
    "services/cli_inspect.py",
    "services/cli_letters.py",
    "services/cli_privacy.py",
)
STATEMENT = re.compile(r"\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM)\s+(?!0)", re.ASCII)
NOT_ASYNCPGS = re.compile(r"\{|[ (]:[a-z]")
"""A template, or a parameter as SQLAlchemy writes it (the migrations' lock)."""

AUDIENCE = {
    "cohort": ["shard", "relation", "city_id", "users"],
    "cohort_member": ["shard", "city_id", "relation", "user_id", "entered_seq"],
    "dead_letter": [
        "shard",
        "seq",
        "user_id",
        "reason",
        "source",
        "replay",
        "log_id",
        "src",
        "received_at",
        "recorded_at",
    ],
    "position": ["shard", "gen", "last_seq"],
    "tick": ["shard", "tick_id", "seq", "at_src", "log_id", "as_of", "rules_version"],
}
"""What the notifier, ingest and the archive were promised; columns may be added behind these."""


def sources() -> Iterator[Path]:
    for part in PARTS:
        path = ROOT / part
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def statements() -> dict[str, str]:
    """SQL in the code by `file:line` or `file:NAME`: every literal, and module constants that were put together."""
    found: dict[str, str] = {}
    for path in sources():
        where = path.relative_to(ROOT)
        text = path.read_text()
        if not STATEMENT.search(text):
            continue
        tree = ast.parse(text)
        inside_f_strings = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in inside_f_strings:
                continue
            if STATEMENT.match(node.value) and not NOT_ASYNCPGS.search(node.value):
                found[f"{where}:{node.lineno}"] = node.value
        module = importlib.import_module(".".join(where.with_suffix("").parts).removesuffix(".__init__"))
        for name, value in vars(module).items():
            if isinstance(value, str) and STATEMENT.match(value) and value not in found.values():
                found[f"{where}:{name}"] = value
    return found


STATEMENTS = statements()


def test_the_statements_are_found() -> None:
    """The test below is worth what this list holds."""
    texts = " ".join(STATEMENTS.values())
    assert len(STATEMENTS) >= 50
    for table in (
        "control.rules",
        "spine.shard_owner",
        "segmenter.user_state",
        "notifier.message",
        "audience.position",
    ):
        assert table in texts


async def test_every_statement_fits_the_migrated_schema(database: Pool) -> None:
    """Postgres parses each one and knows every table, column and type in it."""
    wrong = {}
    async with database.acquire() as connection:
        for where, statement in STATEMENTS.items():
            try:
                await connection.prepare(statement)
            except asyncpg.PostgresError as error:
                wrong[where] = f"{error} in {' '.join(statement.split())[:120]}"
    assert not wrong


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("segmenter.ledger", ledger._COLUMNS),
        ("segmenter.outbox", ledger._COLUMNS),
        ("notifier.outcome", messages._OUTCOME_COLUMNS),
    ],
)
async def test_rows_that_are_copied_in_fill_their_table(database: Pool, table: str, columns: list[str]) -> None:
    """COPY is not prepared: a column it leaves out must have a default."""
    schema, _, name = table.partition(".")
    rows = await database.fetch(
        "SELECT column_name, is_nullable = 'YES' OR column_default IS NOT NULL AS optional"
        " FROM information_schema.columns WHERE table_schema = $1 AND table_name = $2",
        schema,
        name,
    )
    assert set(columns) <= {row["column_name"] for row in rows}
    assert {row["column_name"] for row in rows if not row["optional"]} <= set(columns)


async def test_audience_views_keep_their_columns(database: Pool) -> None:
    """The notifier reads the segmenter's users through these, and nothing else."""
    rows = await database.fetch(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'audience'"
        " ORDER BY table_name, ordinal_position"
    )
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["table_name"], []).append(row["column_name"])
    assert {view: columns[: len(AUDIENCE.get(view, []))] for view, columns in found.items()} == AUDIENCE


@pytest.mark.parametrize(
    ("service", "forbidden"),
    [("ingest", ("segmenter", "notifier", "audience")), ("segmenter", ("notifier",)), ("notifier", ("segmenter",))],
)
def test_no_service_reads_another_ones_tables(service: str, forbidden: tuple[str, ...]) -> None:
    """Services meet at topics, at definitions and at the audience views, of which ingest has its own two."""
    own = r"\baudience\.(dead_letter|position)\b" if service == "ingest" else "$^"
    named = {
        f"{where}: {schema}"
        for where, statement in STATEMENTS.items()
        if where.startswith(f"services/{service}/")
        for schema in forbidden
        if re.search(rf"\b{schema}\.(?!v1)[a-z_]+", re.sub(own, "", statement))
    }
    assert not named


async def test_every_user_keyed_table_begins_with_the_shard(database: Pool) -> None:
    """The shard is the unit of ownership and the column a cluster would distribute by."""
    rows = await database.fetch(
        "SELECT c.table_schema || '.' || c.table_name AS name, array_agg(k.column_name::text) AS key"
        " FROM information_schema.columns c"
        " JOIN information_schema.table_constraints t USING (table_schema, table_name)"
        " JOIN information_schema.key_column_usage k USING (constraint_schema, constraint_name)"
        " WHERE c.column_name = 'user_id' AND c.table_schema IN ('segmenter', 'notifier')"
        " AND t.constraint_type = 'PRIMARY KEY' GROUP BY 1"
    )
    keyed = {row["name"]: row["key"] for row in rows}
    assert {"segmenter.user_state", "notifier.recipient"} <= set(keyed)
    # a message's id must lead to its row without knowing whose it is: a tap carries nothing else
    without = {name for name, key in keyed.items() if "shard" not in key}
    assert {re.sub(r"_\d+$", "", name) for name in without} <= {"notifier.message"}
