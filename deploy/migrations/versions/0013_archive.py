"""What the archive needs of the segmenter beside its input: its ticks."""

from pathlib import Path

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    for statement in Path(__file__).with_name("0013_archive.sql").read_text().split("\n\n"):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP VIEW audience.tick")
