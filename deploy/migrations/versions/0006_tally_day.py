"""Counts by day: who came, stayed and bought when, for reports by day and month."""

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    for statement in Path(__file__).with_name("0006_tally_day.sql").read_text().split("\n\n"):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE segmenter.tally_day")
