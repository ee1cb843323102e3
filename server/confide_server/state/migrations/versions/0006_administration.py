"""What the administration service lists, and what it remembers: parents, pauses, numbers of events, releases."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_RUN_COLUMNS: tuple[tuple[str, Any, str | None], ...] = (
    ("method", sa.String(32), ""),
    ("data", sa.String(64), ""),
    ("privacy_unit", sa.String(16), ""),
    ("parent_run_id", sa.String(32), ""),
    ("parent_round", sa.Integer(), "0"),
    ("priority", sa.Integer(), "0"),
    ("paused_by", sa.String(64), ""),
    ("paused_at", sa.Float(), None),
    ("pause_reason", sa.Text(), ""),
    ("waits_for", sa.JSON(), "[]"),
    ("waits_reason", sa.Text(), ""),
    ("waiting_since", sa.Float(), None),
    ("started_at", sa.Float(), None),
    ("ended_at", sa.Float(), None),
    ("short_rounds", sa.Integer(), "0"),
    ("deleted_at", sa.Float(), None),
)


def upgrade() -> None:
    """Apply. What earlier releases recorded is listed as it is; what they did not is empty or 0."""
    for name, kind, default in _RUN_COLUMNS:
        op.add_column("runs", sa.Column(name, kind, nullable=default is None, server_default=default))
    op.add_column("rounds", sa.Column("phases", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("rounds", sa.Column("received", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("checkpoints", sa.Column("size", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("rosters", sa.Column("version", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("events", sa.Column("number", sa.BigInteger(), nullable=False, server_default="0"))
    _describe_runs()
    _date_runs()
    _version_rosters()
    _number_events()
    _new_tables()


def _describe_runs() -> None:
    runs = sa.table("runs", *(sa.column(name) for name in ("run_id", "method", "data", "privacy_unit")))
    specification = sa.column("specification", sa.LargeBinary)
    for run_id, said in op.get_bind().execute(sa.select(runs.c.run_id, specification).select_from(runs)).all():
        try:
            document = json.loads(said)
            values = {
                "method": str(document["method"]["name"])[:32],
                "data": str(document["federation"]["data"])[:64],
                "privacy_unit": str(document["privacy"]["unit"])[:16],
            }
        except (ValueError, KeyError, TypeError):
            continue  # it is opened, or fails by name, where it is used
        op.get_bind().execute(sa.update(runs).where(runs.c.run_id == run_id).values(**values))


def _date_runs() -> None:
    for column, kinds in (("started_at", "'run_started'"), ("ended_at", "'run_finished', 'run_failed', 'run_stopped'")):
        op.execute(
            f"UPDATE runs SET {column} = (SELECT max(time) FROM events "  # noqa: S608 - constants
            f"WHERE events.run_id = runs.run_id AND events.kind IN ({kinds}))"
        )


def _version_rosters() -> None:
    rosters = sa.table("rosters", sa.column("sha256"), sa.column("signed", sa.LargeBinary), sa.column("version"))
    for sha256, signed in op.get_bind().execute(sa.select(rosters.c.sha256, rosters.c.signed)).all():
        version = json.loads(signed)["document"]["version"]
        op.get_bind().execute(sa.update(rosters).where(rosters.c.sha256 == sha256).values(version=version))


def _number_events() -> None:
    events = sa.table("events", *(sa.column(name) for name in ("run_id", "sequence", "time", "number")))
    order = sa.select(events.c.run_id, events.c.sequence).order_by(events.c.time, events.c.run_id, events.c.sequence)
    last = 0
    for run_id, sequence in op.get_bind().execute(order).all():
        last += 1
        one = (events.c.run_id == run_id) & (events.c.sequence == sequence)
        op.get_bind().execute(sa.update(events).where(one).values(number=last))
    op.create_index("ix_events_number", "events", ["number"], unique=True)
    heads = sa.table("heads", sa.column("name"), sa.column("number"), sa.column("hash"))
    op.bulk_insert(heads, [{"name": "events", "number": last, "hash": ""}])


def _new_tables() -> None:
    op.create_table(
        "idempotency",
        sa.Column("caller", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("method", sa.String(64), nullable=False),
        sa.Column("request_sha256", sa.String(64), nullable=False),
        sa.Column("reply", sa.LargeBinary, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "sightings",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("release", sa.String(40), nullable=False),
        sa.Column("certificate_expires_at", sa.Float, nullable=False),
    )
    op.create_table(
        "releases",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("document", sa.LargeBinary, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("run_id", sa.String(32), sa.ForeignKey("runs.run_id"), nullable=False, index=True),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("published_by", sa.String(64), nullable=False),
        sa.Column("published_at", sa.Float),
    )
    op.create_table(
        "release_signatures",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("administrator", sa.String(64), primary_key=True),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
