"""Prompt sets, answers, judgements of people, and snapshots of them."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "rlhf_prompt_sets",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("source", sa.String(256), nullable=False),
        sa.Column("licence", sa.String(64), nullable=False),
        sa.Column("document", sa.LargeBinary, nullable=False),
        sa.Column("added_at", sa.Float, nullable=False),
    )
    op.create_table(
        "rlhf_candidates",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("prompt_set", sa.String(64), sa.ForeignKey("rlhf_prompt_sets.sha256"), nullable=False, index=True),
        sa.Column("document", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "rlhf_comparisons",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("one", sa.String(64), sa.ForeignKey("rlhf_candidates.sha256"), nullable=False, index=True),
        sa.Column("other", sa.String(64), sa.ForeignKey("rlhf_candidates.sha256"), nullable=False),
        sa.Column("annotator", sa.String(64), nullable=False, index=True),
        sa.Column("document", sa.LargeBinary, nullable=False),
        sa.Column("undone", sa.Boolean, nullable=False),
        sa.Column("made_at", sa.Float, nullable=False),
    )
    op.create_table(
        "rlhf_snapshots",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("document", sa.LargeBinary, nullable=False),
        sa.Column("made_at", sa.Float, nullable=False),
    )
