"""Compile Triton's kernels for GPUs that are not here, and print what they take: registers, spills, shared memory.

    python -m benchmarks.gpu_compile

Needs Triton with its ptxas, no driver: compiling finds what the interpreter cannot (types, shapes, tiles that do not
fit). The last line is JSON.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TARGETS = (80, 90)  # A100, H100 and H200
HEADS, KV_HEADS, SIZE, HIDDEN = 32, 8, 128, 4096  # of Qwen3-VL-8B
MOST_SHARED = 99 * 1024  # bytes of shared memory that a program may take on every one of them


@dataclass(frozen=True)
class Compiled:
    """A kernel for a target."""

    kernel: str
    target: int
    registers: int
    spilled_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Variant:
    """A kernel's specialisation: the types of its arguments, and its constants."""

    name: str
    kernel: str
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4


def variants() -> Iterator[Variant]:
    """What an 8B model in bfloat16 runs."""
    half, single, whole = "*bf16", "*fp32", "*i32"
    lists = dict.fromkeys(("starts", "lengths", "levels", "counts", "members", "blocks", "own_length"), whole)
    span = {"query": half, "keys": half, "values": half, **lists, "out": single, "lse": single, "rows": "i32",
            "query_stride": "i32", "block_stride": "i32", "head_stride": "i32", "scale_log2": "fp32"}  # fmt: skip
    group = HEADS // KV_HEADS
    for width in (1, 16):
        constants = {"WIDTH": width, "GROUP": group, "KV_HEADS": KV_HEADS, "SIZE": SIZE, "M": max(16, width * group),
                     "N": 64, "BLOCK": 16, "UP": False}  # fmt: skip
        yield Variant(f"span_attention, {width} rows", "span_attention", span, constants)
    yield Variant(
        "merge_levels", "merge_levels",
        {"parts": single, "lse": single, "present": whole, "out": half, "rows": "i32"},
        {"HEADS": HEADS, "SIZE": SIZE, "LEVELS": 3, "H": HEADS},
    )  # fmt: skip
    norm = {"x": half, "residual": half, "weight": half, "normed": half, "total": half, "hidden": "i32", "eps": "fp32"}
    yield Variant("add_rms_norm", "add_rms_norm", norm, {"FIRST": False, "H": HIDDEN}, 8)
    tensors = ("qkv", "query_norm", "key_norm", "cosine", "sine", "query", "keys", "values")
    rotate = {**dict.fromkeys(tensors, half), "write": whole, "rows": "i32", "eps": "fp32",
              "block_stride": "i32", "head_stride": "i32"}  # fmt: skip
    heads = {"HEADS": HEADS, "KV_HEADS": KV_HEADS, "SIZE": SIZE, "NORM": True}
    yield Variant("rotate_and_store", "rotate_and_store", rotate, heads, 1)
    yield Variant("silu_mul", "silu_mul", {"gate_up": half, "out": half, "width": "i32"}, {"TILE": 1024})
    sample = {"logits": half, "temperatures": single, "numbers": "*fp64", "out": "*i64", "columns": "i32"}
    yield Variant("sample", "sample", sample, {"TILE": 4096}, 8)


def compile_all() -> list[Compiled]:
    """Every variant for every target. Raises what Triton or ptxas raises."""
    return [compile_variant(variant, target) for variant in variants() for target in TARGETS]


def compile_variant(variant: Variant, target: int) -> Compiled:
    """One of them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from workers.engine.runner.paged import triton_kernels

    kernel = getattr(triton_kernels, variant.kernel)
    signature = {name: variant.types.get(name, "constexpr") for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): value for name, value in variant.constants.items()}
    # As at a launch: torch's memory is aligned, and the strides are multiples of the head size.
    aligned = [name for name, kind in variant.types.items() if kind.startswith("*") or name.endswith("stride")]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    made = triton.compile(
        source, target=GPUTarget("cuda", target, 32), options={"num_warps": variant.warps, "num_stages": 2}
    )
    registers, spilled = _resources(made.asm["ptx"], target)
    return Compiled(variant.name, target, registers, spilled, int(made.metadata.shared))


def _resources(ptx: str, target: int) -> tuple[int, int]:
    """Registers a thread and bytes spilled, as ptxas says."""
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    architecture = f"sm_{target}a" if target == 90 else f"sm_{target}"
    said = ""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "kernel.ptx"
        path.write_text(ptx, encoding="utf-8")
        for ptxas in sorted(folder.glob("ptxas*")):  # Triton brings one for each generation of its PTX
            command = [str(ptxas), "-v", f"--gpu-name={architecture}", str(path), "-o", f"{scratch}/kernel.cubin"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said = done.stderr
            if done.returncode == 0:
                break
        else:
            raise RuntimeError(f"no ptxas under {folder} takes it: {said}")
    registers = max(map(int, re.findall(r"Used (\d+) registers", said)), default=0)
    spilled = max(map(int, re.findall(r"(\d+) bytes spill stores", said)), default=0)
    return registers, spilled


def main() -> None:
    """Print them; exit 1 where one takes more shared memory than there is."""
    found = compile_all()
    for each in found:
        sys.stdout.write(
            f"sm_{each.target} {each.kernel:26s} {each.registers:4d} registers {each.spilled_bytes:5d} bytes spilled "
            f"{each.shared_bytes:6d} bytes shared\n"
        )
    sys.stdout.write(json.dumps([asdict(each) for each in found]) + "\n")
    sys.exit(any(each.shared_bytes > MOST_SHARED for each in found))


if __name__ == "__main__":
    main()
