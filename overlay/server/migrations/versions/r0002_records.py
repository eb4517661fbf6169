"""Records that people put into the network's zone."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "record",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("rtype", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("node", sa.Integer(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "rtype", "value", name="pk_record"),
        sa.ForeignKeyConstraint(["node"], ["node.number"], name="fk_record_node", ondelete="CASCADE"),
    )


def downgrade() -> None:
    op.drop_table("record")
