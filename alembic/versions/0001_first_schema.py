"""The first schema: runs, enqueues, pairs, claims, results, failures."""

import sqlalchemy as sa

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", Id, nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("template", sa.Text(), nullable=False),
        sa.Column("model_key", sa.String(length=64), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("image_root", sa.Text(), nullable=False),
        sa.Column("expected", sa.BigInteger(), nullable=False),
        sa.Column("options", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.UniqueConstraint("name", name="uq_runs_name"),
        sa.UniqueConstraint("uuid", name="uq_runs_uuid"),
    )
    op.create_table(
        "enqueues",
        sa.Column("id", Id, nullable=False),
        sa.Column("run_id", Id, nullable=False),
        sa.Column("inputs", sa.Text(), nullable=False),
        sa.Column("pairs", sa.BigInteger(), nullable=False),
        sa.Column("drops", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_enqueues_run_id_runs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_enqueues"),
    )
    op.create_index("ix_enqueues_run_id", "enqueues", ["run_id"], unique=False)
    op.create_table(
        "pairs",
        sa.Column("id", Id, nullable=False),
        sa.Column("run_id", Id, nullable=False),
        sa.Column("key", sa.String(length=32), nullable=False),
        sa.Column("enqueue_id", Id, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("image_id", sa.Text(), nullable=False),
        sa.Column("image_path", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=True),
        sa.Column("object_id", sa.Text(), nullable=True),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["enqueue_id"], ["enqueues.id"], name="fk_pairs_enqueue_id_enqueues"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_pairs_run_id_runs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_pairs"),
        sa.UniqueConstraint("run_id", "key", name="uq_pairs_run_id_key"),
    )
    op.create_index("ix_pairs_run_id_enqueue_id_position", "pairs", ["run_id", "enqueue_id", "position"], unique=False)
    op.create_table(
        "claims",
        sa.Column("pair_id", Id, autoincrement=False, nullable=False),
        sa.Column("run_id", Id, nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("lease_until", sa.Float(), nullable=False),
        sa.Column("alone", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("lost", sa.Integer(), nullable=False),
        sa.Column("strikes", sa.Integer(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["pair_id"], ["pairs.id"], name="fk_claims_pair_id_pairs", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_claims_run_id_runs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("pair_id", name="pk_claims"),
    )
    op.create_index("ix_claims_run_id_lease_until", "claims", ["run_id", "lease_until"], unique=False)
    op.create_index("ix_claims_worker", "claims", ["worker"], unique=False)
    op.create_table(
        "failures",
        sa.Column("pair_id", Id, autoincrement=False, nullable=False),
        sa.Column("run_id", Id, nullable=False),
        sa.Column("key", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("failed_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["pair_id"], ["pairs.id"], name="fk_failures_pair_id_pairs", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_failures_run_id_runs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("pair_id", name="pk_failures"),
        sa.UniqueConstraint("run_id", "key", name="uq_failures_run_id_key"),
    )
    op.create_table(
        "results",
        sa.Column("pair_id", Id, autoincrement=False, nullable=False),
        sa.Column("run_id", Id, nullable=False),
        sa.Column("key", sa.String(length=32), nullable=False),
        sa.Column("image_id", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=True),
        sa.Column("object_id", sa.Text(), nullable=True),
        sa.Column("descriptions", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("finished_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["pair_id"], ["pairs.id"], name="fk_results_pair_id_pairs", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_results_run_id_runs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("pair_id", name="pk_results"),
        sa.UniqueConstraint("run_id", "key", name="uq_results_run_id_key"),
    )
    op.create_index("ix_results_run_id_finished_at", "results", ["run_id", "finished_at"], unique=False)


def downgrade() -> None:

    op.drop_index("ix_results_run_id_finished_at", table_name="results")
    op.drop_table("results")
    op.drop_table("failures")
    op.drop_index("ix_claims_worker", table_name="claims")
    op.drop_index("ix_claims_run_id_lease_until", table_name="claims")
    op.drop_table("claims")
    op.drop_index("ix_pairs_run_id_enqueue_id_position", table_name="pairs")
    op.drop_table("pairs")
    op.drop_index("ix_enqueues_run_id", table_name="enqueues")
    op.drop_table("enqueues")
    op.drop_table("runs")
