"""Exposures with what was set for them: who may use them, how much."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("exposure", recreate="always", table_kwargs={"sqlite_autoincrement": True}) as table:
        table.add_column(sa.Column("terms", sa.JSON(), nullable=False, server_default="{}"), insert_after="tunnel")
    with op.batch_alter_table("exposure", recreate="always", table_kwargs={"sqlite_autoincrement": True}) as table:
        table.alter_column("terms", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("exposure", recreate="always", table_kwargs={"sqlite_autoincrement": True}) as table:
        table.drop_column("terms")
