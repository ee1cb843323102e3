"""The log of rounds: what the coordinator says of each for good, and the mean update behind it."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Apply. Rounds of before have no entry: nothing was signed of them."""
    empty = sa.text("X''") if op.get_bind().dialect.name == "sqlite" else sa.text("''")
    op.add_column("rounds", sa.Column("record", sa.LargeBinary, nullable=False, server_default=empty))
    op.add_column("rounds", sa.Column("mean_file", sa.String(80), nullable=False, server_default=""))
