"""What checks said of descriptions, and which relations hold in an image by the inputs.

Tables and an index are added alone, so that workers of the version before go on.
"""

import sqlalchemy as sa

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "truths",
        sa.Column("enqueue_id", Id, nullable=False),
        sa.Column("image_id", sa.Text(), nullable=False),
        sa.Column("run_id", Id, nullable=False),
        sa.Column("relations", sa.Text()),
        sa.Column("proposed", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("enqueue_id", "image_id", name="pk_truths"),
        sa.ForeignKeyConstraint(
            ["enqueue_id"], ["enqueues.id"], name="fk_truths_enqueue_id_enqueues", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_truths_run_id_runs", ondelete="CASCADE"),
    )
    op.create_index("ix_truths_run_id_image_id", "truths", ["run_id", "image_id"])
    op.create_table(
        "checked_pairs",
        sa.Column("pair_id", Id, nullable=False),
        sa.Column("run_id", Id, nullable=False),
        sa.Column("request", sa.String(32), nullable=False),
        sa.Column("rules", sa.String(16), nullable=False),
        sa.Column("flags", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("pair_id", name="pk_checked_pairs"),
        sa.ForeignKeyConstraint(["pair_id"], ["pairs.id"], name="fk_checked_pairs_pair_id_pairs", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_checked_pairs_run_id_runs", ondelete="CASCADE"),
    )
    op.create_index("ix_checked_pairs_run_id_flags", "checked_pairs", ["run_id", "flags"])
    op.create_table(
        "text_checks",
        sa.Column("pair_id", Id, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("run_id", Id, nullable=False),
        sa.Column("predicate", sa.Text()),
        sa.Column("flags", sa.Integer(), nullable=False),
        sa.Column("verification", sa.Float()),
        sa.PrimaryKeyConstraint("pair_id", "position", name="pk_text_checks"),
        sa.ForeignKeyConstraint(["pair_id"], ["pairs.id"], name="fk_text_checks_pair_id_pairs", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_text_checks_run_id_runs", ondelete="CASCADE"),
    )
    op.create_index("ix_text_checks_run_id", "text_checks", ["run_id"])
    op.create_table(
        "run_figures",
        sa.Column("run_id", Id, nullable=False),
        sa.Column("basis", sa.Text(), nullable=False),
        sa.Column("figures", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_run_figures"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_figures_run_id_runs", ondelete="CASCADE"),
    )
    op.create_index("ix_pairs_run_id_image_id", "pairs", ["run_id", "image_id"])


def downgrade() -> None:
    op.drop_index("ix_pairs_run_id_image_id", "pairs")
    for table in ("run_figures", "text_checks", "checked_pairs", "truths"):
        op.drop_table(table)
