"""Messages that are held are called off like those that wait: found by their user."""

from pathlib import Path

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    for statement in Path(__file__).with_name("0010_places.sql").read_text().split("\n\n"):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP INDEX notifier.message_waiting")
    op.execute("CREATE INDEX message_waiting ON notifier.message (shard, user_id) WHERE state = 'waiting'")
