"""The specification's prompt over two boxes, word for word."""

from __future__ import annotations

from tools.small_model.rules import Box

TEMPLATE = (
    "这是一张图，物体<|object_ref_start|>{s}<|object_ref_end|>和<|object_ref_start|>{o}<|object_ref_end|>"
    "在位置({sc})和({oc})，<|object_ref_start|>{s}<|object_ref_end|>位于<|box_start|>({sb})<|box_end|>，"
    "<|object_ref_start|>{o}<|object_ref_end|>位于<|box_start|>({ob})<|box_end|>，"
    "{s} is roughly {p} {o}，请给出{s}和{o}细节的相对关系"
)


def normalised(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box in thousandths of ``size`` (width, height): ordered ints in 0..999, never without extent."""
    x1, x2 = _extent(box[0], box[2], size[0])
    y1, y2 = _extent(box[1], box[3], size[1])
    return x1, y1, x2, y2


def prompt(names: tuple[str, str], boxes: tuple[Box, Box], size: tuple[int, int], predicate: str) -> str:
    """The user turn's text for (subject, object) in a picture of ``size`` (width, height)."""
    subject, object_ = (normalised(box, size) for box in boxes)
    return TEMPLATE.format(
        s=names[0],
        o=names[1],
        p=predicate,
        sc=_centre(subject),
        oc=_centre(object_),
        sb=_listed(subject),
        ob=_listed(object_),
    )


def _extent(first: float, second: float, side: int) -> tuple[int, int]:
    low, high = sorted(min(999, max(0, int(x / side * 1000))) for x in (first, second))
    if low == high:
        low, high = (low, high + 1) if high < 999 else (low - 1, high)
    return low, high


def _centre(box: tuple[int, int, int, int]) -> str:
    return f"{(box[0] + box[2]) // 2}, {(box[1] + box[3]) // 2}"


def _listed(box: tuple[int, int, int, int]) -> str:
    return ", ".join(map(str, box))
