"""Names and shapes of what travels, for runs in which it depends on them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Apply. Runs of before know the number of scalars only, which is enough for what they were allowed to be."""
    op.add_column("runs", sa.Column("schema", sa.LargeBinary, nullable=False, server_default=""))
