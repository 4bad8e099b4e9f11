"""Alembic's entry: runs the migrations on the engine that `Store.migrate` hands over.

On Postgres all of them are one transaction, under a lock: of several processes that start at once one migrates, the
others wait and find it done. On SQLite each is a transaction of its own.
"""

from alembic import context
from sqlalchemy import text
from sqlmodel import SQLModel

import spaces_platform.models  # noqa: F401  (fills SQLModel.metadata)

attributes = context.config.attributes
with attributes["engine"].connect() as connection:
    if attributes["lock"] is not None:
        # A large table takes its time, and so may whoever has the lock.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({attributes['lock']})"))
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        render_as_batch=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
