"""Run by alembic for each command: migrate in the transaction that the caller has begun."""

from __future__ import annotations

from alembic import context

from esper.urza.database import VERSION_TABLE
from esper.urza.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
