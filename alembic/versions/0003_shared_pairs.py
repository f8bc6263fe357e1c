"""Which sources hold a pair, where it is more than one.

A table is added alone, so that workers of the version before go on.
"""

import sqlalchemy as sa

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "pair_sources",
        sa.Column("pair_id", Id, nullable=False),
        sa.Column("enqueue_id", Id, nullable=False),
        sa.Column("run_id", Id, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.Text()),
        sa.PrimaryKeyConstraint("pair_id", "enqueue_id", name="pk_pair_sources"),
        sa.ForeignKeyConstraint(["pair_id"], ["pairs.id"], name="fk_pair_sources_pair_id_pairs", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["enqueue_id"], ["enqueues.id"], name="fk_pair_sources_enqueue_id_enqueues", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_pair_sources_run_id_runs", ondelete="CASCADE"),
    )
    op.create_index("ix_pair_sources_run_id", "pair_sources", ["run_id"])
    op.create_index("ix_pair_sources_enqueue_id", "pair_sources", ["enqueue_id"])


def downgrade() -> None:
    op.drop_table("pair_sources")
