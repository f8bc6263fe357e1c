"""One described pair as the published JSON holds it."""

from __future__ import annotations

from typing import Any

from app.pair import Pair, verifications


def as_record(pair: Pair, descriptions: list[dict[str, Any]], *, style: str, details: bool) -> dict[str, Any]:
    """The result of one pair, in the form of the specification (``stage2_generated_results.json``).

    ``details`` adds how each description ended and how many tokens it took; what a reasoning model thought before it,
    null for a description without; and how probable it is that each relation holds, null where that was not asked.
    """
    top_k = [{"predicate": each.predicate, "similarity": each.similarity} for each in pair.candidates]
    record: dict[str, Any] = {"image_id": pair.image_id_json, "subject": pair.subject, "object": pair.object}
    if pair.subject_id is not None:
        record |= {"subject_id": pair.subject_id_json, "object_id": pair.object_id_json}
    record["stage1_top_k"] = top_k
    if style == "per-pair":
        record["ranked_predicates"] = list(pair.predicates)
        record["stage2_generated_description"] = descriptions[0]["text"]
    else:
        record["stage2_generated"] = [
            {**candidate, "generated_description": description["text"]}
            for candidate, description in zip(top_k, descriptions, strict=True)
        ]
    record |= {"has_gt": pair.has_gt, "gt_predicates": list(pair.gt_predicates)}
    if details:
        record["stage2_finish_reasons"] = [description["finish_reason"] for description in descriptions]
        record["stage2_tokens"] = [description["tokens"] for description in descriptions]
        if any("reasoning" in description for description in descriptions):
            record["stage2_reasoning"] = [description.get("reasoning") for description in descriptions]
        record["stage2_verification"] = verifications(pair, descriptions)
    return record
