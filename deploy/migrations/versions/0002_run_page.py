"""The pages of runs: who was in an audience when, so that it can be told afterwards."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute(Path(__file__).with_name("0002_run_page.sql").read_text())


def downgrade() -> None:
    op.execute("DROP TABLE notifier.run_page")
