"""The final file: streamed out of one snapshot of the database, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from app.commands import software_version
from app.database.connection import reading
from app.database.records import Counts, Run
from app.database.result_rows import count_images, described_pairs, last_finished, provenances
from app.database.run_rows import find_run
from app.database.source_rows import sources_of
from app.database.tally_rows import counts_of, recount
from app.errors import ExportError, printable
from app.pair import Pair
from app.results.output import whole_output
from app.results.record import as_record

_ROWS_A_BATCH = 1_000

Record = dict[str, Any]


@dataclass(frozen=True)
class Exported:
    """What an export wrote and what it could not."""

    run: str
    path: Path
    written: int
    pending: int
    failed: int
    texts: Counts  # of which what should not be taken for good ones

    @property
    def lacks(self) -> bool:
        """Whether anything that the run wants is not in it."""
        return bool(self.pending or self.failed or self.texts.texts_unclosed)


def export(
    database: Engine,
    out: Path,
    *,
    run_name: str | None = None,
    form: str | None = None,
    details: bool = False,
) -> Exported:
    """Write a run's results in the order of the inputs.

    ``form`` is one of ``FORMS``; by default it follows from the file's ending. The file appears under its name when it
    is complete. Memory does not grow with the run. Raises RunError and ExportError.
    """
    write = _writer(out, form)
    with reading(database) as connection:
        run = find_run(connection, run_name)
        counts, tallied = recount(connection, run), counts_of(connection, run)
        summary = _summary(connection, run, counts, tallied)
        records = (
            as_record(Pair.from_json(row.payload), row.descriptions, style=run.settings.style, details=details)
            for row in described_pairs(connection, run)
        )
        with whole_output(out) as temporary:
            written = write(temporary, summary, records)
    return Exported(run.name, out, written, counts.pending, counts.failed, tallied)


def describe_export(done: Exported) -> str:
    """What was written and what was not: one line, and one for each kind of doubtful text."""
    line = f"{printable(str(done.path))}: {done.written} results of run {done.run}"
    if done.pending or done.failed:
        line += f"; {done.pending} pairs are pending and {done.failed} failed (results status, results failures)"
    return "\n".join([line, *_doubtful_texts(done)])


def _doubtful_texts(done: Exported) -> Iterator[str]:
    """What looks like a description and may be none."""
    texts = done.texts
    if texts.texts_cut:
        yield (
            f"{texts.texts_cut} of {texts.texts} texts were cut at the limit of new tokens (--max-new-tokens; "
            "`producer redo --where-finish length --max-new-tokens N` draws them again)"
        )
    if texts.texts_repeating:
        yield f"{texts.texts_repeating} of {texts.texts} texts end in one piece over and over (--repetition-penalty)"
    if texts.texts_unclosed:
        yield f"{texts.texts_unclosed} of {texts.texts} texts are reasoning without an answer (--max-new-tokens)"


def _summary(connection: Connection, run: Run, counts: Counts, tallied: Counts) -> Record:
    """What the specification asks for, and where all of it came from."""
    return {
        "total_pairs": counts.done,
        "total_images": count_images(connection, run),
        "top_k_relations": run.settings.top_k,
        "generation_max_tokens": run.settings.max_new_tokens,
        "generation_temperature": float(run.settings.temperature),
        "num_gpus": int(run.options.get("num_gpus") or 0),
        "workers_per_gpu": int(run.options.get("workers_per_gpu") or 1),
        "run": run.name,
        "state": run.state if counts.pending else "finished",
        "model": run.settings.model,
        "model_revision": run.settings.model_revision,
        "model_hash": run.model_hash,
        "style": run.settings.style,
        "template_hash": run.settings.template_hash,
        "seed": run.settings.seed,
        "top_p": float(run.settings.top_p),
        "top_k_sampling": run.settings.top_k_sampling,
        "repetition_penalty": float(run.settings.repetition_penalty),
        "presence_penalty": float(run.settings.presence_penalty),
        "min_pixels": run.settings.min_pixels,
        "max_pixels": run.settings.max_pixels,
        "generated_by": provenances(connection, run),
        "software": f"relation-farm {software_version()}",
        "inputs": [source.inputs for source in sources_of(connection, run)],
        "created_at": _date(run.created_at),
        "last_result_at": _date(last_finished(connection, run)),
        "expected_pairs": counts.pairs,
        "failed_pairs": counts.failed,
        "pending_pairs": counts.pending,
        "stale_pairs": counts.stale,
        "texts": tallied.texts,
        "texts_reused": tallied.texts_reused,
        "texts_cut_off": tallied.texts_cut,
        "texts_repeating": tallied.texts_repeating,
        "texts_unclosed": tallied.texts_unclosed,
    }


def _date(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _write_json(path: Path, summary: Record, records: Iterator[Record]) -> int:
    count = 0
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write('{"summary": ' + _text(summary) + ', "results": [')
        for count, record in enumerate(records, 1):
            file.write(("\n" if count == 1 else ",\n") + _text(record))
        file.write("\n]}\n")
    return count


def _write_jsonl(path: Path, _summary: Record, records: Iterator[Record]) -> int:
    count = 0
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for count, record in enumerate(records, 1):  # noqa: B007 - the count is the answer
            file.write(_text(record) + "\n")
    return count


def _write_parquet(path: Path, summary: Record, records: Iterator[Record]) -> int:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ExportError("Parquet needs pyarrow: pip install 'relation-farm[parquet]'") from None
    columns = _parquet_columns(pa, summary["style"])
    schema = pa.schema(columns, metadata={"summary": json.dumps(summary)})
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(islice(records, _ROWS_A_BATCH)):
            # A column has one type: ids are text here, whatever JSON type they have.
            rows = [{**record, **{name: str(record[name]) for name in _IDS if name in record}} for record in batch]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
            count += len(batch)
    return count


_IDS = ("image_id", "subject_id", "object_id")


def _parquet_columns(pa: Any, style: str) -> list[tuple[str, Any]]:
    candidate = [("predicate", pa.string()), ("similarity", pa.float64())]
    if style == "per-pair":
        generated = [("ranked_predicates", pa.list_(pa.string())), ("stage2_generated_description", pa.string())]
    else:
        described = pa.struct([*candidate, ("generated_description", pa.string())])
        generated = [("stage2_generated", pa.list_(described))]
    return [
        *((name, pa.string()) for name in ("image_id", "subject", "object", "subject_id", "object_id")),
        ("stage1_top_k", pa.list_(pa.struct(candidate))),
        *generated,
        ("has_gt", pa.bool_()),
        ("gt_predicates", pa.list_(pa.string())),
        ("stage2_finish_reasons", pa.list_(pa.string())),
        ("stage2_tokens", pa.list_(pa.int64())),
        ("stage2_reasoning", pa.list_(pa.string())),
        ("stage2_verification", pa.list_(pa.float64())),
    ]


FORMS: dict[str, Callable[[Path, Record, Iterator[Record]], int]] = {
    "json": _write_json,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
}


def _writer(out: Path, form: str | None) -> Callable[[Path, Record, Iterator[Record]], int]:
    name = form or {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}.get(out.suffix.lower(), "json")
    return FORMS[name]


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
