"""Releases of models that no run of this coordinator made."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("releases") as table:
        table.alter_column("run_id", existing_type=sa.String(32), nullable=True)
