"""Storage of Spaces: the tier that was asked for, and whether the volume is to be removed."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("space", sa.Column("storage", sa.String(), nullable=True))
    op.add_column("space", sa.Column("drops_volume", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    with op.batch_alter_table("space", schema=None) as batch_op:
        batch_op.drop_column("drops_volume")
        batch_op.drop_column("storage")
