"""Chains of alerts: what is in force, what users were told, and how their phones were told."""

from pathlib import Path

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    for statement in Path(__file__).with_name("0011_alert_chains.sql").read_text().split("\n\n"):
        op.execute(statement)


def downgrade() -> None:
    op.execute("ALTER TABLE notifier.outcome DROP COLUMN chain")
    op.execute("DROP INDEX notifier.message_chain")
    op.execute(
        "ALTER TABLE notifier.message DROP COLUMN chain, DROP COLUMN action, DROP COLUMN sound, DROP COLUMN told"
    )
    op.execute("ALTER TABLE notifier.context_event DROP COLUMN city_ids, DROP COLUMN sent_at, DROP COLUMN valid_until")
    op.execute("ALTER TABLE notifier.alert_chain DROP COLUMN replaced_by")
