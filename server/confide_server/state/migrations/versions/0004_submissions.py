"""What an administrator signs of a submission and of a stop; what a round leaves for an auditor."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Apply. Runs of before have no nonce: the open ones end by name, since no node accepts them any more."""
    empty = sa.text("x''") if op.get_bind().dialect.name == "sqlite" else ""
    op.add_column("runs", sa.Column("nonce", sa.LargeBinary, nullable=False, server_default=empty))
    op.add_column("runs", sa.Column("expires_at", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("stop_signature", sa.LargeBinary, nullable=False, server_default=empty))
    op.add_column("rounds", sa.Column("evidence", sa.JSON, nullable=False, server_default="[]"))
    op.create_table(
        "rosters",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("signed", sa.LargeBinary, nullable=False),
    )
