"""What Alembic runs to apply the steps, over the connection that `postgres_tables.migrate` hands it."""

from alembic import context

from membuilder.serving.postgres_tables import SCHEMA

context.configure(connection=context.config.attributes["connection"], version_table_schema=SCHEMA)
with context.begin_transaction():
    context.run_migrations()
