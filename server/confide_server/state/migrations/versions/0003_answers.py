"""One row for each node's answer to a run's offer, instead of all of them in one column."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Apply. Answers that were given stay; who has no row has not answered."""
    answers = op.create_table(
        "answers",
        sa.Column("run_id", sa.String(32), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("node", sa.String(64), primary_key=True),
        sa.Column("answer", sa.String(16), nullable=False),
    )
    runs = sa.table("runs", sa.column("run_id", sa.String), sa.column("answers", sa.JSON))
    given = [
        {"run_id": run_id, "node": node, "answer": answer}
        for run_id, together in op.get_bind().execute(sa.select(runs.c.run_id, runs.c.answers))
        for node, answer in together.items()
        if answer
    ]
    op.bulk_insert(answers, given)
    op.drop_column("runs", "answers")
