"""What other shards told of users who turned out to be one is noted as it is read, for a refold."""

from pathlib import Path

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    for statement in Path(__file__).with_name("0014_merge_log.sql").read_text().split("\n\n"):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE segmenter.merge_log")
