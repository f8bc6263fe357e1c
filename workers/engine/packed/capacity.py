"""What of a GPU's memory is for keys and values, and whether that is enough to start. No torch."""

from __future__ import annotations

from workers.engine.api import TooLittleMemory

LEAST_ROWS = 16  # a step reads all weights however few rows it has: below these a GPU is wasted
IMAGE_TOKENS, SHARED_TOKENS, OWN_TOKENS = 1024, 128, 544  # of a request that must fit: one image, its pair, itself
ACTIVATIONS = 3 * 2**29  # bytes; what they do not cover, running out of memory teaches
GIB = 2**30


def kv_budget(total: int, fraction: float, weights: int, token_bytes: int) -> int:
    """Bytes for keys and values: what is allowed, less the weights and room for activations.

    ``total`` bytes of the device, of which ``fraction`` are allowed; ``weights`` bytes; ``token_bytes`` of one token's
    keys and values. Raises ``TooLittleMemory`` where ``LEAST_ROWS`` requests do not fit, with the sum and what would.
    """
    allowed = int(fraction * total)
    activations = max((allowed - weights) // 10, ACTIVATIONS)
    budget = allowed - weights - activations
    needed = least_bytes(token_bytes)
    if budget >= needed:
        return budget
    raise TooLittleMemory(
        f"the model does not fit this GPU: weights {weights / GIB:.1f} GiB + activations {activations / GIB:.1f} GiB "
        f"+ keys and values of {LEAST_ROWS} requests {needed / GIB:.1f} GiB = "
        f"{(weights + activations + needed) / GIB:.1f} GiB, of {allowed / GIB:.1f} GiB allowed ({fraction:g} of "
        f"{total / GIB:.1f} GiB). What would fit: a model whose weights take at most "
        f"{max(0, allowed - activations - needed) / GIB:.1f} GiB, the same model in FP8 (about {weights / 2 / GIB:.1f} "
        "GiB), or two GPUs with the vllm engine"
    )


def least_bytes(token_bytes: int) -> int:
    """Bytes of the keys and values of ``LEAST_ROWS`` requests over one image."""
    return (IMAGE_TOKENS + LEAST_ROWS * (SHARED_TOKENS + OWN_TOKENS)) * token_bytes
