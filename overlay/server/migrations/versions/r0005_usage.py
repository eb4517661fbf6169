"""How many bytes went through exposures, and all of a node's, in the month that is kept with them."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("node", sa.Integer(), nullable=False),
        sa.Column("exposure", sa.Integer(), nullable=False),
        sa.Column("month", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["node"], ["node.number"], name="fk_usage_node", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("node", "exposure", name="pk_usage"),
    )


def downgrade() -> None:
    op.drop_table("usage")
