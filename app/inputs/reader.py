"""The two inputs to pairs: read, validated, grouped, each drop counted under its reason.

Both files are streamed: stage 1 image by image (``stage1``), the second input through an index of byte
offsets (``annotations``). What is wrong with an item drops the item and is counted (``drops``); what
is wrong with a file as a whole is an ``InputError``, and nothing of the file may be used then. Null is the
same as absent, except for a similarity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from app.errors import InputError
from app.images import ImageRoot, Prefixes
from app.inputs.annotations import ImageIndex
from app.inputs.box_census import BoxCensus
from app.inputs.drops import Drops, Reason
from app.inputs.ids import canonical_id, opening
from app.inputs.lookup import Dropped, FoundImage, Lookup
from app.inputs.stage1 import Group, Identity, group_candidates, read_images
from app.inputs.truth import TruthSink, image_truth
from app.pair import Candidate, Pair

#: Pairs of one image that ``Pair.position`` has room for.
MAX_PAIRS_PER_IMAGE = 1 << 20


def read_pairs(  # noqa: PLR0913 - two files, and six things to know of them
    stage1: Path | Sequence[Path],
    images: Path,
    *,
    image_root: Path | None = None,
    image_prefixes: Prefixes = (),
    census: BoxCensus | None = None,
    top_k: int = 10,
    drops: Drops,
    check_files: bool = True,
    truths: TruthSink | None = None,
) -> Iterator[Pair]:
    """The pairs of a stage-1 file, or of several one after another, in their order.

    ``position`` sorts them into the order of the export.

    ``image_root`` is the folder that image paths are relative to, by default that of ``images``; ``image_prefixes``
    say what stands here for the folders of another machine. ``census`` says in which form the second input writes
    boxes (pairs hold them as corners in pixels) and counts how many look like it.
    ``check_files`` drops the pairs of images that have no file there, and those with a box outside its image. An
    image that stage 1 holds a second time, under the same or another spelling of its id, is taken from its first
    place only. Where ids identify a pair, its names are those of its first candidate. ``truths`` is handed the true
    relations of each image that stage 1 names.

    Raises:
        InputError: a file is wrong as a whole. It may come after the last pair: use none before the end.
    """
    census = census or BoxCensus()
    if census.form == "relative" and not check_files:
        raise ValueError("relative boxes need the images' sizes, which only checked files tell")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    root = ImageRoot(image_root or images.parent, image_prefixes)
    files = [stage1] if isinstance(stage1, Path) else list(stage1)
    with opening(images) as images_file:
        index = ImageIndex(images_file, str(images), drops)
        lookup = Lookup(index, root, check_files, census)
        seen: set[str] = set()
        for key, candidates in _all_images(files, drops):
            image_id = canonical_id(key) or key
            if image_id in seen:
                _drop_repeated(key, candidates, drops)
                continue
            seen.add(image_id)
            if candidates and image_id in index:
                index.mark_used(image_id)
            groups = group_candidates(key, candidates, drops)
            kept: dict[Identity, Pair] = {}
            for identity, pair in _pairs_of(image_id, groups, lookup, top_k, drops):
                kept[identity] = pair
                yield pair
            if truths is not None:
                truths(image_truth(image_id, groups, kept, index.record(image_id), drops))
        index.count_unused()


def _all_images(files: Sequence[Path], drops: Drops) -> Iterator[tuple[str, list[Any]]]:
    for path in files:
        with opening(path) as file:
            yield from read_images(file, str(path), drops)


def _drop_repeated(key: str, candidates: list[Any], drops: Drops) -> None:
    if candidates:
        drops.candidates_read += len(candidates)
        drops.add(Reason.REPEATED_IN_STAGE1, "stage 1, image {}", key, number=len(candidates))


def _pairs_of(
    image_id: str, groups: dict[Identity, Group], lookup: Lookup, top_k: int, drops: Drops
) -> Iterator[tuple[Identity, Pair]]:
    """The pairs of one image; those that cannot become work are counted with their reason."""
    image: FoundImage | Dropped | None = None
    for identity, group in groups.items():
        pair: Pair | Dropped
        if not group.proposals:
            pair = Dropped(Reason.ONLY_NO_RELATION if group.only_no_relation else Reason.NO_USABLE_CANDIDATE)
        else:
            image = image or lookup.image(image_id)  # looked up once, and only where a pair needs it
            pair = image if isinstance(image, Dropped) else _pair(image, identity, group, top_k)
        if isinstance(pair, Dropped):
            _count_dropped(image_id, group, pair, drops)
        else:
            _count_kept(pair, group, drops)
            yield identity, pair


def _pair(image: FoundImage, identity: Identity, group: Group, top_k: int) -> Pair | Dropped:
    entry, (form, subject, object_) = image.entry, identity
    if group.place >= MAX_PAIRS_PER_IMAGE:
        raise InputError("stage 1", f"image {entry.image_id!r}", None, f"more than {MAX_PAIRS_PER_IMAGE} pairs")
    known = entry.by_id if form == "id" else entry.by_class
    subject_obj = image.record(known.get(subject), subject, Reason.SUBJECT_NOT_FOUND)
    object_obj = image.record(known.get(object_), object_, Reason.OBJECT_NOT_FOUND)
    if isinstance(subject_obj, Dropped):
        return subject_obj
    if isinstance(object_obj, Dropped):
        return object_obj
    # The sort is stable in reverse, too: equal similarities stay in order of appearance.
    best = sorted(group.proposals, key=itemgetter(0), reverse=True)[:top_k]
    by_id = form == "id"
    return Pair(
        image_id=entry.image_id,
        image_id_json=entry.image_id_json,
        image_path=image.path,
        subject=group.subject,
        object=group.object,
        subject_id=subject if by_id else None,
        object_id=object_ if by_id else None,
        subject_id_json=subject_obj["id"] if by_id else None,
        object_id_json=object_obj["id"] if by_id else None,
        subject_obj=subject_obj,
        object_obj=object_obj,
        candidates=tuple(Candidate(predicate, similarity) for similarity, predicate in best),
        has_gt=group.has_gt,
        gt_predicates=tuple(group.gt_predicates),
        extent=entry.extent,
        position=entry.order * MAX_PAIRS_PER_IMAGE + group.place,
        frame=image.frame,
        frame_size=image.size,
        image_stamp=image.stamp,
    )


def _count_dropped(image_id: str, group: Group, why: Dropped, drops: Drops) -> None:
    drops.candidates_in_dropped_pairs += len(group.proposals)
    example = "image {}, pair {}, {}" + ": {}" * len(why.shown)
    drops.add(why.reason, example, image_id, group.subject, group.object, *why.shown)


def _count_kept(pair: Pair, group: Group, drops: Drops) -> None:
    drops.pairs_kept += 1
    drops.candidates_kept += len(pair.candidates)
    below = len(group.proposals) - len(pair.candidates)
    if below:
        drops.add(
            Reason.BELOW_TOP_K,
            "image {}, pair {}, {}",
            pair.image_id,
            pair.subject,
            pair.object,
            number=below,
        )
