"""Users are erased: the requests, how far each has come, and whom nothing more is taken in of."""

from pathlib import Path

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    for statement in Path(__file__).with_name("0012_erasure.sql").read_text().split("\n\n"):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP INDEX notifier.outcome_user")
    op.execute(
        "CREATE OR REPLACE VIEW audience.dead_letter AS"
        " SELECT shard, seq, user_id, payload->>'reason' AS reason, payload->>'source' AS source,"
        " coalesce((payload->>'replay')::boolean, false) AS replay, log_id, src, occurred_at AS received_at,"
        " recorded_at FROM segmenter.ledger WHERE kind = 'dead_letter'"
    )
    op.execute("DROP TABLE segmenter.suppressed, control.erasure")
