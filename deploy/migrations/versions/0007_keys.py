"""Keys that follow one another, scopes, rate limits, and what keys were used for."""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    for statement in Path(__file__).with_name("0007_keys.sql").read_text().split("\n\n"):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE control.source_verdict, control.key_use")
    op.execute("DROP VIEW control.key_in_force")
    op.execute("DELETE FROM control.key WHERE revoked_at IS NOT NULL OR expires_at IS NOT NULL")
    op.execute("DROP INDEX control.key_source")
    op.execute(
        "ALTER TABLE control.key ADD CONSTRAINT key_source_key UNIQUE (source),"
        " DROP COLUMN scopes, DROP COLUMN expires_at, DROP COLUMN events_per_second"
    )
