"""Alembic's entry: runs the migrations on the connection that Database hands over."""

from alembic import context

from confide_server.state import idempotency, preference_tables, releases, sightings  # noqa: F401 - their tables
from confide_server.state.database import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
