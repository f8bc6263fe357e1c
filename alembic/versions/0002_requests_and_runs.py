"""Requests, sources, images, tallies, and the life of a run.

Columns and tables are added alone, so that workers of the version before go on.
"""

import json
from collections import Counter, defaultdict

import sqlalchemy as sa

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TALLIED = ("pairs", "done", "failed", "stale", "texts", "tokens", "texts_reused", "texts_cut")


def upgrade() -> None:
    _runs()
    op.add_column("enqueues", sa.Column("key", sa.String(length=32)))
    op.add_column("enqueues", sa.Column("image_root", sa.Text()))
    op.add_column("enqueues", sa.Column("image_prefixes", sa.Text()))
    for table in ("pairs", "results", "failures"):
        op.add_column(table, sa.Column("request", sa.String(length=32), nullable=False, server_default=""))
    op.add_column("results", sa.Column("scene_key", sa.String(length=32)))
    op.add_column("results", sa.Column("spare", sa.Text()))
    op.add_column("results", sa.Column("provenance", sa.Text()))
    op.create_index("ix_results_scene_key", "results", ["scene_key"])
    op.create_index("ix_pairs_run_id_id", "pairs", ["run_id", "id"])
    op.create_table(
        "images",
        sa.Column("run_id", Id, nullable=False),
        sa.Column("image_id", sa.Text(), nullable=False),
        sa.Column("enqueue_id", Id, nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64)),
        sa.PrimaryKeyConstraint("run_id", "image_id", name="pk_images"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_images_run_id_runs", ondelete="CASCADE"),
    )
    op.create_table(
        "tallies",
        sa.Column("run_id", Id, nullable=False),
        sa.Column("process", sa.String(length=200), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False, server_default="0") for name in TALLIED),
        sa.PrimaryKeyConstraint("run_id", "process", name="pk_tallies"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_tallies_run_id_runs", ondelete="CASCADE"),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("about", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_workers"),
    )
    _count_what_is_there()


def downgrade() -> None:
    for table in ("workers", "tallies", "images"):
        op.drop_table(table)
    op.drop_index("ix_results_scene_key", "results")
    op.drop_index("ix_pairs_run_id_id", "pairs")
    for table, columns in (
        ("results", ("request", "scene_key", "spare", "provenance")),
        ("failures", ("request",)),
        ("pairs", ("request",)),
        ("enqueues", ("key", "image_root", "image_prefixes")),
    ):
        for column in columns:
            op.drop_column(table, column)
    op.drop_index("ix_runs_model_key", "runs")
    for column in ("publisher_until", "publisher", "published_upto", "epoch", "model_hash", "priority", "state"):
        op.drop_column("runs", column)


def _runs() -> None:
    op.add_column("runs", sa.Column("state", sa.String(length=16), nullable=False, server_default="active"))
    op.add_column("runs", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("model_hash", sa.String(length=64)))
    op.add_column("runs", sa.Column("epoch", sa.String(length=36)))
    op.add_column("runs", sa.Column("published_upto", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("publisher", sa.Text(), nullable=False, server_default=""))
    op.add_column("runs", sa.Column("publisher_until", sa.Float(), nullable=False, server_default="0"))
    op.create_index("ix_runs_model_key", "runs", ["model_key"])


def _count_what_is_there() -> None:
    """What a run of the version before holds: pairs, results, failures, all of one request (""), and its texts."""
    count = "(SELECT count(*) FROM {0} WHERE {0}.run_id = runs.id)"
    op.execute(
        "INSERT INTO tallies (run_id, process, pairs, done, failed) "
        f"SELECT id, '', {count.format('pairs')}, {count.format('results')}, {count.format('failures')} FROM runs"
    )
    connection = op.get_bind()
    texts: dict[int, Counter[str]] = defaultdict(Counter)
    # By JSON's own reader: a database's refuses what only an escape can say (NUL, half of a surrogate pair).
    every = sa.text("SELECT run_id, descriptions FROM results")
    for run_id, descriptions in connection.execute(every, execution_options={"yield_per": 1_000}):
        for each in json.loads(descriptions):
            texts[run_id].update(texts=1, tokens=each["tokens"], cut=each["finish_reason"] == "length")
    change = sa.text("UPDATE tallies SET texts = :texts, tokens = :tokens, texts_cut = :cut WHERE run_id = :run_id")
    for run_id, found in texts.items():
        values = {"texts": found["texts"], "tokens": found["tokens"], "cut": found["cut"], "run_id": run_id}
        connection.execute(change, values)
