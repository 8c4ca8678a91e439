"""Exposures: whom a campaign treated and whom it held out, and what they did afterwards."""

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute(Path(__file__).with_name("0008_exposure.sql").read_text())


def downgrade() -> None:
    op.execute("DROP TABLE notifier.exposure")
