"""``kernels.c``, compiled once for this machine's processor and loaded; without a C compiler there is none.

The library lies in the user's cache folder under a name that says from what and for which processor it was made.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workers.engine.openmp import openmp

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
# All of -ffast-math but its start-up code, which would change how the whole process rounds.
FLAGS = [
    *("-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"),
    *("-fassociative-math", "-fno-signed-zeros", "-freciprocal-math", "-ffinite-math-only"),
]
COMPILE_SECONDS = 120  # a compiler that takes longer hangs


@dataclass(frozen=True)
class Heads:
    """What is done to the query and key heads of a layer before they meet."""

    count: int  # query heads
    query_norm: Tensor  # (size,)
    key_norm: Tensor  # (size,)
    eps: float
    scaling: float  # of the queries


class Kernels:
    """The functions of ``kernels.c`` over float32 tensors on the CPU, which must be contiguous."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._rms_norm, self._silu_mul, self._attention = library.rms_norm, library.silu_mul, library.attention
        pointer, many = c_void_p, c_int64
        self._rms_norm.argtypes = [pointer, pointer, c_float, many, many, pointer, c_int]
        self._silu_mul.argtypes = [pointer, many, many, pointer, c_int]
        self._attention.argtypes = [
            pointer, pointer, pointer, pointer, pointer, c_float, c_float, POINTER(c_void_p), pointer, pointer,
            many, c_int, c_int, c_int, pointer, c_int,
        ]  # fmt: skip

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """(..., size) divided by its root mean square, times ``weight`` (size,)."""
        out, size = torch.empty_like(x), x.shape[-1]
        rows, threads = x.numel() // size, torch.get_num_threads()
        self._rms_norm(x.data_ptr(), weight.data_ptr(), eps, rows, size, out.data_ptr(), threads)
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """(rows, 2 x size), the gate's values and then the up's -> (rows, size)."""
        rows, both = gate_up.shape
        out = gate_up.new_empty(rows, both // 2)
        self._silu_mul(gate_up.data_ptr(), rows, both // 2, out.data_ptr(), torch.get_num_threads())
        return out

    def attention(
        self,
        qkv: Tensor,
        rotary: tuple[Tensor, Tensor],
        heads: Heads,
        keys: list[Tensor],
        values: list[Tensor],
        spans: np.ndarray,
    ) -> Tensor:
        """A layer's attention over a packed step, from the projections' output (tokens, (heads + 2 x kv heads) x size).

        ``qkv`` is overwritten. ``rotary``: cosines and sines, (tokens, size); ``keys`` and ``values``: of images,
        groups and sequences, each (slots, kv heads, capacity, size), and the tokens' own are stored there; ``spans``:
        what each token sees, as the C structure ``Token``, (tokens, 7) int64. Gives (tokens, heads x size).

        Raises ``MemoryError``.
        """
        cosine, sine = (each.contiguous() for each in rotary)
        kv_heads, size = keys[0].shape[1], keys[0].shape[3]
        out = qkv.new_empty(len(spans), heads.count * size)
        stacks = (c_void_p * 6)(*(tensor.data_ptr() for tensor in (*keys, *values)))
        capacities = (c_int64 * 3)(*(tensor.shape[2] for tensor in keys))
        failed = self._attention(
            qkv.data_ptr(), cosine.data_ptr(), sine.data_ptr(), heads.query_norm.data_ptr(), heads.key_norm.data_ptr(),
            heads.eps, heads.scaling, stacks, ctypes.addressof(capacities), spans.ctypes.data, len(spans),
            heads.count, kv_heads, size, out.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError("no memory for a step's attention scores")
        return out


@cache
def load_kernels() -> Kernels | None:
    """The compiled kernels, or None with the reason in the log."""
    try:
        return Kernels(_load())
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        log.warning("the CPU's own kernels cannot be compiled, torch's are used: %s", _reason(error))
        return None


def _load() -> ctypes.CDLL:
    openmp()  # the kernels use torch's threads: its library is there to be found, and no other is linked
    try:
        folder = _folder()
    except (OSError, RuntimeError) as error:  # no home folder, or a read-only one
        log.info("compiling the CPU's own kernels for this process alone: %s", error)
        with tempfile.TemporaryDirectory() as scratch:
            return ctypes.CDLL(str(_built(Path(scratch))))
    return ctypes.CDLL(str(_built(folder)))


def _built(folder: Path) -> Path:
    """The library for this machine in ``folder``, compiled where it is not there."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    native = "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"
    command = [*compiler, *FLAGS, native]
    text = "\0".join([SOURCE.read_text(), *command, _processor(), torch.__version__])
    target = folder / f"kernels-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            compiled, linked = Path(scratch) / "kernels.o", Path(scratch) / "kernels.so"
            _run([*command, "-c", str(SOURCE), "-o", str(compiled)])
            _run([*compiler, "-shared", str(compiled), "-o", str(linked), "-lm"])
            linked.replace(target)  # at once, so that another process finds it whole or not at all
    return target


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)


def _folder() -> Path:
    """Where libraries are kept: only this user may write there, for what lies there is run."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "relation-farm"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = folder.stat()
    if owner.st_uid != os.getuid() or owner.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written to by others")
    return folder


def _processor() -> str:
    """What distinguishes processors for a compiler: a cache folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _reason(error: Exception) -> str:
    printed = getattr(error, "stderr", None)
    return f"{error}: {printed.strip()[-500:]}" if printed else str(error)
