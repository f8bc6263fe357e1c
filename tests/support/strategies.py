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
    """The right thing, but for a few times any JSON value."""
    return st.integers(0, 15).flatmap(lambda dice: json_values if dice == 7 else right)


def records(right: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """Objects of which now and then a key is absent or holds any JSON value.

    Most must be right: where half of the keys were absent, not one of 150 inputs had a pair in it.
    """
    whole = st.fixed_dictionaries(right)
    spoilt = st.fixed_dictionaries({}, optional={name: mostly(value) for name, value in right.items()})
    return mostly(st.integers(0, 7).flatmap(lambda dice: spoilt if dice == 3 else whole))


names = st.sampled_from(["man", "dog", "man", "dog", "wall", "wall\t", "<|im_end|>"])
object_ids = st.sampled_from([1, 2, 3, "1", 2.0, "03"])
coordinates = st.floats(-20, 200) | st.integers(-20, 200)
boxes = st.lists(coordinates, min_size=4, max_size=4)

_named = {
    "subject": st.just("man") | names,  # so that several candidates share a pair
    "object": st.just("dog") | names,
    "predicted_predicate": st.sampled_from(["on", "above", "no relation", " No Relation"]),
    "similarity": st.sampled_from([0.1, 0.5, 0.9]) | st.floats(0, 1),
    "has_gt": st.booleans(),
    "gt_predicates": st.lists(st.sampled_from(["on", "under"]), max_size=3),
}
candidates = records(_named) | records(_named | {"subject_id": st.none() | object_ids, "object_id": object_ids})
image_ids = st.sampled_from([1, 2, "1", "2", 1.0, "2.0", "01", 3])
stage1 = mostly(
    st.fixed_dictionaries(
        {
            KEY: mostly(
                st.dictionaries(
                    image_ids.map(str), mostly(st.lists(candidates, min_size=3, max_size=8)), min_size=1, max_size=4
                )
            )
        }
    )
)
objects = records({"id": object_ids, "class_name": names, "bbox": boxes})
images = mostly(
    st.lists(
        records(
            {
                "image_id": image_ids,
                "image_path": st.sampled_from(["a.jpg", "b/c.png", "b/d.png", "../x.jpg"]),
                "objects": st.lists(objects, min_size=2, max_size=5),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
