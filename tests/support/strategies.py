"""What hypothesis feeds the readers: any JSON, and inputs that are right but for some of it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from app.inputs.stage1 import KEY

json_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8)
json_values = st.recursive(
    json_scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


def mostly(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The right thing nine times of ten, any JSON value else."""
    return st.integers(0, 9).flatmap(lambda dice: json_values if dice == 0 else right)


def records(required: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """Objects of which some keys may be absent or hold any JSON value."""
    return mostly(st.fixed_dictionaries({}, optional={k: mostly(v) for k, v in required.items()}))


names = st.sampled_from(["man", "dog", "wall", "wall\t", "<|im_end|>"])
object_ids = st.sampled_from([1, 2, 3, "1", 2.0, "03"])
coordinates = st.floats(-20, 200) | st.integers(-20, 200)
boxes = st.lists(coordinates, min_size=4, max_size=4)

candidates = records(
    {
        "subject": names,
        "object": names,
        "predicted_predicate": st.sampled_from(["on", "above", "no relation", " No Relation"]),
        "similarity": st.floats(0, 1),
        "has_gt": st.booleans(),
        "gt_predicates": st.lists(st.sampled_from(["on", "under"]), max_size=3),
    }
    | {"subject_id": st.none() | object_ids, "object_id": st.none() | object_ids}
)
image_ids = st.sampled_from([1, 2, "1", "2", 1.0, "2.0", "01", 3])
stage1 = mostly(
    st.fixed_dictionaries(
        {KEY: mostly(st.dictionaries(image_ids.map(str), mostly(st.lists(candidates, max_size=12)), max_size=4))}
    )
)
objects = records({"id": object_ids, "class_name": names, "bbox": boxes})
images = mostly(
    st.lists(
        records(
            {
                "image_id": image_ids,
                "image_path": st.sampled_from(["a.jpg", "b/c.png", "../x.jpg"]),
                "objects": st.lists(objects, max_size=6),
            }
        ),
        max_size=5,
    )
)
