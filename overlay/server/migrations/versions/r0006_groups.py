"""Several leases of one place: members of a group, told apart by node and target."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_OLD = "uq_exposure_protocol_host_public_port_path"
_NEW = "uq_exposure_protocol_host_public_port_path_node_target"


def upgrade() -> None:
    with op.batch_alter_table("exposure", recreate="always", table_kwargs={"sqlite_autoincrement": True}) as table:
        table.drop_constraint(_OLD, type_="unique")
        table.create_unique_constraint(_NEW, ["protocol", "host", "public_port", "path", "node", "target"])


def downgrade() -> None:
    with op.batch_alter_table("exposure", recreate="always", table_kwargs={"sqlite_autoincrement": True}) as table:
        table.drop_constraint(_NEW, type_="unique")
        table.create_unique_constraint(_OLD, ["protocol", "host", "public_port", "path"])
