"""What lists need of a run's specification as columns of its own, and an index by which offers are found."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
OFFERS = sa.text("kind = 'offer_answered'")


def upgrade() -> None:
    """Apply. A specification that cannot be read leaves its columns empty; it fails by name where it is used."""
    op.add_column("runs", sa.Column("privacy_epsilon", sa.Float(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("privacy_delta", sa.Float(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("base_sha256", sa.String(64), nullable=False, server_default=""))
    op.add_column("runs", sa.Column("base_name", sa.String(200), nullable=False, server_default=""))
    _describe_runs()
    op.create_index("ix_events_offers", "events", ["number"], sqlite_where=OFFERS, postgresql_where=OFFERS)
    of_run = ["run_id", "sequence"]
    op.create_index("ix_events_offers_of_run", "events", of_run, sqlite_where=OFFERS, postgresql_where=OFFERS)


def _describe_runs() -> None:
    names = ("run_id", "privacy_epsilon", "privacy_delta", "base_sha256", "base_name")
    runs = sa.table("runs", *(sa.column(name) for name in names))
    specification = sa.column("specification", sa.LargeBinary)
    for run_id, said in op.get_bind().execute(sa.select(runs.c.run_id, specification).select_from(runs)).all():
        try:
            document = json.loads(said)
            privacy, model = document.get("privacy", {}), document["model"]
            epsilon = float(privacy.get("epsilon") or 0.0)
            values = {
                "privacy_epsilon": epsilon,
                "privacy_delta": float(privacy.get("delta") or 0.0) if epsilon else 0.0,
                "base_sha256": str(model["sha256"])[:64],
                "base_name": str(model.get("name", "base"))[:200],
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        op.execute(runs.update().where(runs.c.run_id == run_id).values(**values))
