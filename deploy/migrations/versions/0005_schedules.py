"""Forecasts by city, how far schedules were judged, and runs that they set going."""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    for statement in Path(__file__).with_name("0005_schedules.sql").read_text().split("\n\n"):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP VIEW audience.cohort")
    op.execute("ALTER TABLE notifier.message DROP COLUMN city_id")
    op.execute(
        "DELETE FROM notifier.run_page p USING notifier.run r WHERE r.run_id = p.run_id AND r.context <> 'alert'"
    )
    op.execute(
        "DELETE FROM notifier.run_shard s USING notifier.run r WHERE r.run_id = s.run_id AND r.context <> 'alert'"
    )
    op.execute("DELETE FROM notifier.run WHERE context <> 'alert'")
    op.execute(
        "ALTER TABLE notifier.run DROP CONSTRAINT run_campaign_occurrence_context_id_zone_key, DROP COLUMN context,"
        " DROP COLUMN zone, ALTER COLUMN valid_until SET NOT NULL, ADD UNIQUE (campaign, occurrence, context_id)"
    )
    op.execute("DROP TABLE notifier.schedule, notifier.forecast")
