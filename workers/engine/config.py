"""The engine's own configuration: every knob, its unit and its default, checked once."""

from __future__ import annotations

from dataclasses import dataclass

ENGINES = ("auto", "builtin", "transformers", "vllm")
CUDA_ROWS = 256
"""Requests decoded together on a GPU where memory has room: beyond some 300 rows (the ridge of an H100 in bfloat16) a
step grows as fast as its rows do."""

DTYPES = (None, "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How an engine is built; ``load_engine`` takes it whole.

    Raises ``ValueError`` naming the field whose value makes no sense.
    """

    model: str
    """A folder or a hub name."""

    revision: str | None = None
    """The hub's branch, tag or commit; None is its default branch."""

    engine: str = "auto"
    """"builtin", "transformers" or "vllm"; "auto" is builtin where that knows the model's family, else transformers."""

    device: str = "auto"
    """A torch device ("cuda:0", "cpu"); "auto" is the first CUDA device, else the CPU."""

    dtype: str | None = None
    """"float32", "bfloat16" or "float16"; None is bfloat16 on CUDA and float32 on a CPU."""

    batch_size: int | None = None
    """Most requests decoded together; None lets the engine choose by the memory it may use."""

    memory_fraction: float | None = None
    """Share of the device's memory this process may use, 0 < x <= 1 (CUDA); None is 0.8."""

    cpu_memory_bytes: int = 4 * 2**30
    """Bytes that keys and values may take on a CPU, shared prefixes included."""

    prefix_cache_bytes: int | None = None
    """Bytes for what is kept per image (features, keys and values); None is a quarter of the key/value
    memory.
    """

    min_pixels: int | None = None
    """Fewest pixels an image is scaled to; None is the model's own."""

    max_pixels: int | None = None
    """Most pixels an image is scaled to; None is the model's own."""

    gpus: int = 1
    """GPUs that share the model, each a slice of it (vLLM's tensor parallelism); the other engines take one."""

    threads: int | None = None
    """CPU threads of torch in this process; None leaves torch's choice."""

    compile: bool | None = None
    """True: decoding steps of fixed shapes, on CUDA replayed as graphs. False: torch's own kernels alone. None: the
    graphs on CUDA; on a CPU our compiled kernels, where there is a C compiler.
    """

    def __post_init__(self) -> None:
        """Refuse values that could only fail later, further from their cause."""
        if not self.model:
            raise ValueError("model: a folder or a hub name is needed")
        _one_of("engine", self.engine, ENGINES)
        _one_of("dtype", self.dtype, DTYPES)
        for name in ("batch_size", "prefix_cache_bytes", "min_pixels", "max_pixels", "threads", "gpus"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is not a positive number")
        if self.cpu_memory_bytes < 2**20:
            raise ValueError(f"cpu_memory_bytes: {self.cpu_memory_bytes} is less than one MiB")
        if self.memory_fraction is not None and not 0 < self.memory_fraction <= 1:
            raise ValueError(f"memory_fraction: {self.memory_fraction} is not within 0 and 1")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels: {self.min_pixels} is above max_pixels {self.max_pixels}")


def _one_of(name: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(map(repr, allowed))}")
