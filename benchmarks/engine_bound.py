"""The memory-bandwidth bound of decoding: weights and keys/values read once a step."""

from __future__ import annotations

import torch

from benchmarks.engine_workload import Workload
from tools.random_model import TEXT_SIZES, VOCABULARIES

IMAGE_TOKENS, TEXT_TOKENS = 300, 120  # of a prompt over a 640x480 photograph
COPY_BYTES = 2**30  # what the bandwidth is measured with


def decode_bound(size: str, workload: Workload, slots: int = 512) -> float:
    """Tokens a second that the device's memory could feed: a step reads the weights, each image's prefix
    once, and each row's own tokens.
    """
    rows = min(slots, len(workload.requests))
    token = _token_bytes(size)
    longest = max(request.sampling.max_new_tokens for request in workload.requests)
    own = rows * (TEXT_TOKENS + longest / 2) * token
    step = _weight_bytes(size) + workload.images * IMAGE_TOKENS * token + own
    return rows / (step / _bandwidth())


def _weight_bytes(size: str) -> int:
    text: dict[str, int] = TEXT_SIZES[size]
    hidden, head = text["hidden_size"], text["head_dim"]
    attention = hidden * head * 2 * (text["num_attention_heads"] + text["num_key_value_heads"])
    layer = attention + 3 * hidden * text["intermediate_size"]
    return 2 * (text["num_hidden_layers"] * layer + VOCABULARIES[size] * hidden)


def _token_bytes(size: str) -> int:
    text: dict[str, int] = TEXT_SIZES[size]
    return 2 * 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * text["head_dim"]


def _bandwidth() -> float:
    """Bytes a second, by timing copies on the device."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    target.copy_(source)
    start.record()
    for _ in range(10):
        target.copy_(source)
    end.record()
    torch.cuda.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return 10 * 2 * COPY_BYTES / (milliseconds / 1e3)
