"""Spine, definitions, segmenter state and notifier messages."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    for statement in Path(__file__).with_name("0001_initial.sql").read_text().split("\n\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    for schema in ("audience", "notifier", "segmenter", "spine", "control"):
        op.execute(f"DROP SCHEMA {schema} CASCADE")
