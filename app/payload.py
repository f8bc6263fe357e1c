"""A pair as the database keeps it: the columns for queries, and a JSON value that holds it exactly."""

from __future__ import annotations

from typing import Any

from app.pairs import Pair


def as_row(pair: Pair) -> dict[str, Any]:
    """The columns of the pairs table, but for the ids."""
    return {
        "key": pair.key_hash,
        "position": pair.position,
        "image_id": pair.image_id,
        "image_path": pair.image_path,
        "subject": pair.subject,
        "object": pair.object,
        "subject_id": pair.subject_id,
        "object_id": pair.object_id,
        "payload": {
            "image_id": pair.image_id_json,
            "image_path": pair.image_path,
            "identity": pair.key,
            "subject": pair.subject,
            "object": pair.object,
            "subject_id": pair.subject_id_json,
            "object_id": pair.object_id_json,
            "subject_obj": pair.subject_obj,
            "object_obj": pair.object_obj,
            "candidates": [[candidate.predicate, candidate.similarity] for candidate in pair.candidates],
            "has_gt": pair.has_gt,
            "gt_predicates": list(pair.gt_predicates),
            "extent": list(pair.extent),
        },
    }
