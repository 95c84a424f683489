"""Whose traces may still stand in the files of tables: a server that died on the way from deletion to VACUUM FULL."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute('CREATE TABLE membuilder.erasing (memory uuid PRIMARY KEY, "user" text NOT NULL)')
    # as in 0001: no samples of names for the planner
    op.execute('ALTER TABLE membuilder.erasing ALTER COLUMN "user" SET STATISTICS 0')
