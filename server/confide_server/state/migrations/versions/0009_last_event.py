"""The number of each run's newest event, so that a list of runs reads no events."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Apply."""
    op.add_column("runs", sa.Column("last_event", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE runs SET last_event = coalesce((SELECT max(number) FROM events WHERE events.run_id = runs.run_id), 0)"
    )
