"""Delays: occurrences that wait, found when they are due and when something calls them off."""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    for statement in Path(__file__).with_name("0004_delays.sql").read_text().split("\n\n"):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP INDEX notifier.message_due, notifier.message_waiting")
    op.execute("CREATE INDEX message_held ON notifier.message (shard, release_at) WHERE state = 'held'")
