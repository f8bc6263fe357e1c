"""Whatever JSON the inputs hold: no error but ``InputError``, and an account that is complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from app.errors import InputError
from app.inputs.drops import Drops
from app.inputs.reader import read_pairs
from app.inputs.stage1 import KEY
from app.pair import Pair
from tests.support import strategies


def read(folder: Path, stage1: Any, images: Any) -> tuple[list[Pair], Drops]:
    (folder / "stage1.json").write_text(json.dumps(stage1))
    (folder / "images.json").write_text(json.dumps(images))
    drops = Drops()
    pairs = read_pairs(folder / "stage1.json", folder / "images.json", drops=drops, check_files=False)
    return list(pairs), drops


def test_the_inputs_drawn_here_do_make_pairs(tmp_path: Path) -> None:
    """Without any, the tests below would look at nothing."""

    def has_two_pairs(drawn: tuple[Any, Any]) -> bool:
        try:
            return len(read(tmp_path, *drawn)[0]) >= 2
        except InputError:
            return False

    inputs = st.tuples(strategies.stage1, strategies.images)
    # What is drawn depends on the constants of the modules that happen to be loaded; the first hit is enough.
    once = settings(max_examples=5_000, derandomize=True, deadline=None, phases=[Phase.generate])
    find(inputs, has_two_pairs, settings=once)


@settings(max_examples=150, deadline=None)
@given(stage1=strategies.stage1, images=strategies.images)
def test_every_candidate_is_in_a_pair_or_counted(
    tmp_path_factory: pytest.TempPathFactory, stage1: Any, images: Any
) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        pairs, drops = read(folder, stage1, images)
    except InputError:
        assert not (isinstance(images, list) and isinstance(stage1, dict) and isinstance(stage1.get(KEY), dict))
        return
    given_candidates = sum(len(c) for c in stage1[KEY].values() if isinstance(c, list))
    counted = sum(drops.of("candidates").values())
    assert drops.candidates_read == given_candidates
    assert given_candidates == drops.candidates_kept + drops.candidates_in_dropped_pairs + counted
    assert drops.candidates_kept == sum(len(pair.candidates) for pair in pairs)
    assert drops.pairs_kept == len(pairs) == len({pair.key_hash for pair in pairs})
    assert len({pair.position for pair in pairs}) == len(pairs)
    json.dumps(drops.as_dict()).encode()


@settings(max_examples=150, deadline=None)
@given(data=st.data(), stage1=strategies.stage1)
def test_broken_bytes_are_refused_or_read_as_json_reads_them(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, stage1: Any
) -> None:
    folder = tmp_path_factory.getbasetemp()
    text = bytearray(json.dumps(stage1, ensure_ascii=False).encode("utf-8", "replace"))
    place = data.draw(st.integers(0, len(text)))
    text[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=2))
    (folder / "stage1.json").write_bytes(text)
    (folder / "images.json").write_text("[]")
    drops = Drops()
    try:
        expected = json.loads(text.decode("utf-8", "surrogateescape"))
    except ValueError:
        expected = None
    try:
        list(read_pairs(folder / "stage1.json", folder / "images.json", drops=drops, check_files=False))
    except InputError:
        assert not isinstance(expected, dict) or not isinstance(expected.get(KEY), dict)
    else:
        given_lists = (c for c in (expected or {KEY: {}})[KEY].values() if isinstance(c, list))
        assert drops.candidates_read >= sum(map(len, given_lists))


@settings(max_examples=150, deadline=None)
@given(stage1=strategies.stage1, images=strategies.images)
def test_every_pair_can_be_stored_and_prompted(
    tmp_path_factory: pytest.TempPathFactory, stage1: Any, images: Any
) -> None:
    try:
        pairs, _ = read(tmp_path_factory.getbasetemp(), stage1, images)
    except InputError:
        return
    for pair in pairs:
        texts = [pair.image_id, pair.image_path, pair.subject, pair.object, pair.key, *pair.gt_predicates]
        assert "\0" not in "".join(texts + [c.predicate for c in pair.candidates])
        "".join(texts).encode()
        json.dumps([pair.subject_obj, pair.object_obj, pair.image_id_json, pair.subject_id_json]).encode()
        similarities = [c.similarity for c in pair.candidates]
        assert 1 <= len(similarities) <= 10
        assert similarities == sorted(similarities, reverse=True)
        assert not Path(pair.image_path).is_absolute()
        assert ".." not in Path(pair.image_path).parts
