"""The tables, and the conditions by which a pair is in the inputs, answered or pending.

Alembic's migrations make the tables; a test checks that both say the same.

Text that comes from the inputs or the model is kept twice where it serves two purposes: exactly, inside a JSON
column (ASCII escapes, so that NUL and lone surrogates survive both databases), and readable, in a text column.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    and_,
    exists,
)


class Json(TypeDecorator[Any]):
    """A JSON value in a text column: key order, number spelling and any character survive."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


class Readable(TypeDecorator[str]):
    """Text for people and queries: what no database stores (NUL, lone surrogates) becomes U+FFFD."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only in a column of type INTEGER.
_Id = BigInteger().with_variant(Integer(), "sqlite")

WITHDRAWN = "withdrawn"
"""The key of the source of pairs that are in no input any more: kept for their texts, and counted nowhere."""

TALLIED = ("pairs", "done", "failed", "stale", "texts", "tokens", "texts_reused", "texts_cut")
"""What is counted of a run: pairs by outcome, and the texts of those that are done."""

runs = Table(
    "runs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uuid", String(36), nullable=False, unique=True),  # what messages carry: ids return, uuids do not
    Column("name", String(200), nullable=False, unique=True),
    Column("settings", Json, nullable=False),  # what changes the text; a second enqueue must match
    Column("template", Json, nullable=False),  # the prompt template's own text
    Column("model_key", String(64), nullable=False),  # the queues it is published to
    Column("model", Text, nullable=False),
    Column("image_root", Text, nullable=False),  # of sources that name none (before 0002)
    Column("expected", BigInteger, nullable=False),  # pairs, as of the last enqueue
    Column("options", Json, nullable=False),  # num_gpus and the like: reported, not compared
    Column("created_at", Float, nullable=False),  # seconds since 1970, as all times here
    Column("state", String(16), nullable=False, server_default="active"),  # active, paused, cancelled
    Column("priority", Integer, nullable=False, server_default="0"),  # higher ones are served first
    Column("model_hash", String(64)),  # of all of the model, bound by the first worker; NULL before
    Column("epoch", String(36)),  # of the broker that holds what was published
    Column("published_upto", BigInteger, nullable=False, server_default="0"),  # pair ids up to here, in that epoch
    Column("publisher", Text, nullable=False, server_default=""),  # who publishes at present
    Column("publisher_until", Float, nullable=False, server_default="0"),  # by the database's clock
    Index(None, "model_key"),
)

# A source: two input files with the root of their images. Enqueueing it again renews its row.
enqueues = Table(
    "enqueues",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("run_id", _Id, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("inputs", Json, nullable=False),  # both files: path, bytes, sha256
    Column("pairs", BigInteger, nullable=False),
    Column("drops", Json, nullable=False),  # reason -> count, and examples with their place
    Column("created_at", Float, nullable=False),  # or renewed
    Column("key", String(32)),  # hash of what names the source, NULL before 0002
    Column("image_root", Text),
    Column("image_prefixes", Json),  # [[old, new], ...], the longest old one that fits wins
    Index(None, "run_id"),
)

# Each image of a run: which file, as it was when it was last enqueued, and its content once somebody has read it.
images = Table(
    "images",
    metadata,
    Column("run_id", _Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("image_id", Readable, primary_key=True),
    Column("enqueue_id", _Id, nullable=False),
    Column("path", Text, nullable=False),  # of the producer's host, escaped where it is no UTF-8
    Column("size", BigInteger, nullable=False),  # bytes
    Column("mtime_ns", BigInteger, nullable=False),
    Column("sha256", String(64)),
)

pairs = Table(
    "pairs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("run_id", _Id, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("key", String(32), nullable=False),  # hash of the identity, by ids or by names: never NULL
    Column("enqueue_id", _Id, ForeignKey("enqueues.id"), nullable=False),  # the last one that held it
    Column("position", BigInteger, nullable=False),  # sorts into the order of the inputs
    Column("image_id", Readable, nullable=False),
    Column("image_path", Readable, nullable=False),
    Column("subject", Readable, nullable=False),
    Column("object", Readable, nullable=False),
    Column("subject_id", Readable),
    Column("object_id", Readable),
    Column("payload", Json, nullable=False),  # the pair, exactly
    Column("request", String(32), nullable=False, server_default=""),  # hash of all that determines its texts here
    UniqueConstraint("run_id", "key"),
    Index(None, "run_id", "enqueue_id", "position"),
    Index(None, "run_id", "id"),
    Index(None, "run_id", "image_id"),
)

# Only pairs that more than one source holds stand here, once for each of these.
pair_sources = Table(
    "pair_sources",
    metadata,
    Column("pair_id", _Id, ForeignKey("pairs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("enqueue_id", _Id, ForeignKey("enqueues.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("run_id", _Id, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("payload", Json),  # what the source says of it, NULL where that is what the pair's row says
    Index(None, "run_id"),
    Index(None, "enqueue_id"),
)

results = Table(
    "results",
    metadata,
    Column("pair_id", _Id, ForeignKey("pairs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("run_id", _Id, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("key", String(32), nullable=False),
    Column("image_id", Readable, nullable=False),
    Column("subject", Readable, nullable=False),
    Column("object", Readable, nullable=False),
    Column("subject_id", Readable),
    Column("object_id", Readable),
    Column("descriptions", Json, nullable=False),  # in the order of the pair's top K: text, finish, tokens
    Column("worker", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("finished_at", Float, nullable=False),
    Column("request", String(32), nullable=False, server_default=""),  # which it answers; another one: stale
    Column("scene_key", String(32)),  # what reuse looks up: image, names, boxes, template, model
    Column("spare", Json),  # descriptions of older requests, that a later one may want again
    Column("provenance", Json),  # model hash, image hash, engine, dtype, version
    UniqueConstraint("run_id", "key"),
    Index(None, "run_id", "finished_at"),
    Index(None, "scene_key"),
)

failures = Table(
    "failures",
    metadata,
    Column("pair_id", _Id, ForeignKey("pairs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("run_id", _Id, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("key", String(32), nullable=False),
    Column("reason", String(64), nullable=False),  # one of a few, for grouping
    Column("detail", Readable, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("worker", Text, nullable=False),
    Column("failed_at", Float, nullable=False),
    Column("request", String(32), nullable=False, server_default=""),  # which could not be answered
    UniqueConstraint("run_id", "key"),
)

claims = Table(
    "claims",
    metadata,
    Column("pair_id", _Id, ForeignKey("pairs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("run_id", _Id, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("worker", Text, nullable=False),  # a process's own name; "" when nobody holds it
    Column("lease_until", Float, nullable=False),  # by the database's clock
    Column("alone", Integer, key="quarantined", nullable=False),  # 1: the holder runs nothing alongside it
    Column("attempts", Integer, nullable=False),  # times it was started
    Column("lost", Integer, nullable=False),  # times its holder vanished, for whatever reason
    Column("strikes", Integer, key="crash_count", nullable=False),  # deaths that count against it
    Column("detail", Readable, nullable=False),  # of the last strike
    Index(None, "run_id", "lease_until"),
    Index(None, "worker"),
)

# Counts as deltas, one row a process, so that no row of a run is written by all; their sum is the run's.
tallies = Table(
    "tallies",
    metadata,
    Column("run_id", _Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("process", String(200), primary_key=True),  # "" holds what ended processes and producers counted
    *(Column(name, BigInteger, nullable=False, server_default="0") for name in TALLIED),
)

# Which relations hold in an image by one source: what its recall is counted against (app/inputs/truth.py).
truths = Table(
    "truths",
    metadata,
    Column("enqueue_id", _Id, ForeignKey("enqueues.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("image_id", Readable, primary_key=True),
    Column("run_id", _Id, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("relations", Json),  # of the second input; NULL where the image has no such list
    Column("proposed", Json, nullable=False),  # of the candidates' own gt_predicates
    Index(None, "run_id", "image_id"),
)

# Which description a pair's checks are of, by which rules; and all that is flagged in any of its texts.
checked_pairs = Table(
    "checked_pairs",
    metadata,
    Column("pair_id", _Id, ForeignKey("pairs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("run_id", _Id, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("request", String(32), nullable=False),  # that the result answers which was checked
    Column("rules", String(16), nullable=False),  # their version and the wanted language
    Column("flags", Integer, nullable=False),  # bits of app.judge.flags.Flag
    Index(None, "run_id", "flags"),
)

text_checks = Table(
    "text_checks",
    metadata,
    Column("pair_id", _Id, ForeignKey("pairs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),  # in the result's list of descriptions
    Column("run_id", _Id, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("predicate", Readable),  # NULL where one description stands for the pair
    Column("flags", Integer, nullable=False),
    Column("verification", Float),  # P(the relation holds); NULL where nobody asked the model
    Index(None, "run_id"),
)

# A run's recall, as of its last check.
run_figures = Table(
    "run_figures",
    metadata,
    Column("run_id", _Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("basis", Json, nullable=False),  # what they were computed from: the same again needs no computing
    Column("figures", Json, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("about", Json, nullable=False),  # host, process, model, device, engine
    Column("started_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
)


def answers(outcomes: Table) -> ColumnElement[bool]:
    """The row of ``outcomes`` (results or failures) is the pair's, and of its present request."""
    return and_(outcomes.c.pair_id == pairs.c.id, outcomes.c.request == pairs.c.request)


def is_pending() -> ColumnElement[bool]:
    """Neither described nor failed as it is asked now."""
    described, failed = (exists().where(answers(table)).correlate(pairs) for table in (results, failures))
    return and_(~described, ~failed)


def is_live() -> ColumnElement[bool]:
    """In a source, and not withdrawn."""
    return ~exists().where(enqueues.c.id == pairs.c.enqueue_id, enqueues.c.key == WITHDRAWN).correlate(pairs)
