"""Further administrators' signatures over a submission."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Apply. Runs of before have one signature, which was enough."""
    op.add_column("runs", sa.Column("cosigned", sa.JSON(), nullable=False, server_default="[]"))
