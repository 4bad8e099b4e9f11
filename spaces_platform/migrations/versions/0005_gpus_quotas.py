"""GPUs: who holds which, who waits, and who may have how many."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "gpulease",
        sa.Column("gpu", sa.String(), nullable=False),
        sa.Column("deployment_id", sa.Integer(), nullable=False),
        sa.Column("space_id", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.Integer(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["account.id"]),
        sa.ForeignKeyConstraint(["space_id"], ["space.id"]),
        sa.PrimaryKeyConstraint("gpu"),
    )
    op.create_index("ix_gpulease_deployment_id", "gpulease", ["deployment_id"])
    op.create_table(
        "quota",
        sa.Column("owner_id", sa.Integer(), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["account.id"]),
        sa.PrimaryKeyConstraint("owner_id"),
    )
    op.add_column("space", sa.Column("gpu_queued_at", sa.Float(), nullable=True))
    op.create_index("ix_space_gpu_queued_at", "space", ["gpu_queued_at"])


def downgrade() -> None:
    op.drop_index("ix_space_gpu_queued_at", "space")
    with op.batch_alter_table("space", schema=None) as batch_op:
        batch_op.drop_column("gpu_queued_at")
    op.drop_table("quota")
    op.drop_table("gpulease")
