"""One described pair as the published JSON holds it."""

from __future__ import annotations

from typing import Any


def as_record(
    payload: dict[str, Any], descriptions: list[dict[str, Any]], *, style: str, details: bool
) -> dict[str, Any]:
    """The result of one pair, in the form of the specification (``stage2_generated_results.json``).

    ``details`` adds how each description ended and how many tokens it took.
    """
    top_k = [{"predicate": predicate, "similarity": similarity} for predicate, similarity in payload["candidates"]]
    record: dict[str, Any] = {
        "image_id": payload["image_id"],
        "subject": payload["subject"],
        "object": payload["object"],
    }
    if payload["subject_id"] is not None:
        record |= {"subject_id": payload["subject_id"], "object_id": payload["object_id"]}
    record["stage1_top_k"] = top_k
    if style == "per-pair":
        record["ranked_predicates"] = [candidate["predicate"] for candidate in top_k]
        record["stage2_generated_description"] = descriptions[0]["text"]
    else:
        record["stage2_generated"] = [
            {**candidate, "generated_description": description["text"]}
            for candidate, description in zip(top_k, descriptions, strict=True)
        ]
    record |= {"has_gt": payload["has_gt"], "gt_predicates": payload["gt_predicates"]}
    if details:
        record["stage2_finish_reasons"] = [description["finish_reason"] for description in descriptions]
        record["stage2_tokens"] = [description["tokens"] for description in descriptions]
    return record
