"""Exposures by a host's name and a path, and by tunnels of several kinds."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_OLD = "uq_exposure_protocol_host_public_port"
_NEW = "uq_exposure_protocol_host_public_port_path"


def upgrade() -> None:
    with op.batch_alter_table("exposure", recreate="always", table_kwargs={"sqlite_autoincrement": True}) as table:
        table.add_column(sa.Column("path", sa.Text(), nullable=False, server_default=""), insert_after="public_port")
        table.add_column(sa.Column("tunnel", sa.Text(), nullable=False, server_default="single"), insert_after="port")
        table.drop_constraint(_OLD, type_="unique")
        table.create_unique_constraint(_NEW, ["protocol", "host", "public_port", "path"])
    with op.batch_alter_table("exposure", recreate="always", table_kwargs={"sqlite_autoincrement": True}) as table:
        table.alter_column("path", server_default=None)
        table.alter_column("tunnel", server_default=None)


def downgrade() -> None:
    op.execute("DELETE FROM exposure WHERE path != ''")
    with op.batch_alter_table("exposure", recreate="always", table_kwargs={"sqlite_autoincrement": True}) as table:
        table.drop_constraint(_NEW, type_="unique")
        table.create_unique_constraint(_OLD, ["protocol", "host", "public_port"])
        table.drop_column("path")
        table.drop_column("tunnel")
