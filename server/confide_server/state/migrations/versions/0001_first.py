"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _of_run() -> sa.Column[str]:
    return sa.Column("run_id", sa.String(32), sa.ForeignKey("runs.run_id"), primary_key=True)


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(32), primary_key=True),
        sa.Column("number", sa.Integer, nullable=False, unique=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("specification", sa.LargeBinary, nullable=False),
        sa.Column("initial_model_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("signature", sa.LargeBinary(64), nullable=False),
        sa.Column("administrator", sa.String(64), nullable=False),
        sa.Column("submitted_at", sa.Float, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("rounds", sa.Integer, nullable=False),
        sa.Column("sealing", sa.String(16), nullable=False),
        sa.Column("cohort", sa.JSON, nullable=False),
        sa.Column("answers", sa.JSON, nullable=False),
        sa.Column("stop_requested_by", sa.String(64)),
        sa.Column("flower_run_id", sa.String(20)),
    )
    op.create_table(
        "slots",
        _of_run(),
        sa.Column("slot", sa.Integer, primary_key=True),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("planned_at", sa.Float, nullable=False),
    )
    op.create_table(
        "rounds",
        _of_run(),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("slot", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("contributors", sa.JSON, nullable=False),
        sa.Column("dropped", sa.JSON, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("promise", sa.JSON, nullable=False),
        sa.Column("update_norm", sa.Float, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("committed_at", sa.Float, nullable=False),
    )
    op.create_table(
        "checkpoints",
        _of_run(),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("model_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("model_file", sa.String(80), nullable=False),
        sa.Column("outer_file", sa.String(80), nullable=False),
    )
    op.create_table(
        "events",
        _of_run(),
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
    )
    op.create_table(
        "instructions",
        _of_run(),
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("previous", sa.String(64), nullable=False, unique=True),
        sa.Column("hash", sa.String(64), nullable=False),
    )
