"""Who deleted a run: what is left of one says it."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Apply. Of runs that were deleted before, `detail` says who did."""
    op.add_column("runs", sa.Column("deleted_by", sa.String(64), nullable=False, server_default=""))
