"""Tokens for those who come through the server by HTTP CONNECT."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "proxy_token",
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=True),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("nodes", sa.JSON(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_proxy_token"),
        sa.UniqueConstraint("digest", name="uq_proxy_token_digest"),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    op.drop_table("proxy_token")
