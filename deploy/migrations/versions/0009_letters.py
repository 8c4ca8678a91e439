"""Dead letters: found quickly, shown by a view, and replayed."""

from pathlib import Path

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    for statement in Path(__file__).with_name("0009_letters.sql").read_text().split("\n\n"):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE control.replayed, control.replay")
    op.execute("DROP VIEW audience.dead_letter")
    op.execute("DROP INDEX segmenter.ledger_dead, segmenter.ledger_dead_newest")
