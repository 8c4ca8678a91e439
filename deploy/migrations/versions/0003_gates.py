"""Frequency caps, quiet hours, repeats and sunset: what of a message they are judged by."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for statement in Path(__file__).with_name("0003_gates.sql").read_text().split("\n\n"):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP INDEX notifier.message_held, notifier.message_counted")
    op.execute(
        "ALTER TABLE notifier.message DROP COLUMN category, DROP COLUMN counts, DROP COLUMN content_key,"
        " DROP COLUMN zone, DROP COLUMN release_at, DROP COLUMN held, DROP COLUMN explain"
    )
