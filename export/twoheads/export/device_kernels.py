"""The source of the runtime's kernels, in Triton, and how their PTX is made: no GPU is needed for it.

``python -m twoheads.export.device_kernels`` writes the files that :mod:`twoheads.runtime.backends.cuda_kernels`
loads. Triton and torch are needed here only; the runtime launches the PTX through the driver.
"""

from __future__ import annotations

import inspect
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
from triton.compiler import ASTSource  # type: ignore[import-untyped]

from twoheads.graphs.errors import InternalError
from twoheads.runtime.backends import cuda_kernels as kernels
from twoheads.runtime.backends.device_protocol import Kernel

__all__ = ["compile_kernel", "merge_state", "source_digest", "zero_tail"]

CAPABILITY = 80
"""Ampere: what runs everywhere that ONNX Runtime's current CUDA packages do."""
PTX_VERSION = 80
"""PTX ISA 8.0, which drivers from 525 on read (CUDA 12)."""
COLUMNS = 64
"""Columns of the values that a program of ``merge_state`` holds at once."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def merge_state(
    outs: tl.tensor,
    lses: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    count: int,
    rows: int,
    width: int,
    ROWS: tl.constexpr,  # noqa: N803 - constants of a kernel are upper case
    COLUMNS: tl.constexpr,  # noqa: N803
) -> None:
    """See :data:`twoheads.runtime.backends.cuda_kernels.MERGE_STATE`."""
    row = tl.cast(tl.program_id(0), tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    for part in range(count):
        top = tl.maximum(top, tl.load(lses + tl.cast(part, tl.int64) * rows + row, real, float("-inf")))
    # A row that sees no key in any partial would be inf - inf; any finite reference leaves its weights at 0.
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros((ROWS,), tl.float32)
    for part in range(count):
        total += tl.exp(tl.load(lses + tl.cast(part, tl.int64) * rows + row, real, float("-inf")) - top)
    divisor = tl.where(total > 0, total, 1.0)
    for first in range(0, width, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = real[:, None] & (column < width)[None, :]
        place = row[:, None] * width + column[None, :]
        merged = tl.zeros((ROWS, COLUMNS), tl.float32)
        for part in range(count):
            at = tl.cast(part, tl.int64) * rows
            weight = tl.exp(tl.load(lses + at + row, real, float("-inf")) - top) / divisor
            merged += weight[:, None] * tl.load(outs + at * width + place, inside, 0.0)
        tl.store(out + place, merged, inside)
    tl.store(lse + row, top + tl.log(total), real)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def zero_tail(
    tile: tl.tensor,
    real: tl.tensor,
    outer: tl.tensor,
    tokens: tl.tensor,
    inner: tl.tensor,
    BYTES: tl.constexpr,  # noqa: N803
) -> None:
    """See :data:`twoheads.runtime.backends.cuda_kernels.ZERO_TAIL`."""
    at = tl.cast(tl.program_id(0), tl.int64) * BYTES + tl.arange(0, BYTES)
    token = (at // inner) % tokens
    behind = (at < tl.cast(outer, tl.int64) * tokens * inner) & (token >= tl.load(real))
    tl.store(tile + at, tl.zeros((BYTES,), tl.uint8), behind)


_TYPES = {
    "merge_state": ("*fp32", "*fp32", "*fp32", "*fp32", "i32", "i32", "i32"),
    "zero_tail": ("*u8", "*i32", "i32", "i32", "i32"),
}
_CONSTANTS = {
    "merge_state": {"ROWS": kernels.MERGE_ROWS, "COLUMNS": COLUMNS},
    "zero_tail": {"BYTES": kernels.ZERO_BYTES},
}
_SOURCES: dict[str, Any] = {"merge_state": merge_state, "zero_tail": zero_tail}


def source_digest(kernel: Kernel) -> str:
    """What the code of ``kernel`` was made from, as the first line of its file says it."""
    text = f"{inspect.getsource(_SOURCES[kernel.name].fn)} {_CONSTANTS[kernel.name]} {kernel.threads} {CAPABILITY}"
    return sha256(text.encode()).hexdigest()


def compile_kernel(kernel: Kernel) -> tuple[str, bytes]:
    """Compiles ``kernel``: its PTX, and what NVIDIA's assembler makes of it."""
    function = _SOURCES[kernel.name]
    constants = _CONSTANTS[kernel.name]
    types = dict(zip(function.arg_names, _TYPES[kernel.name], strict=False))
    source: Any = ASTSource(
        fn=function, signature=types | dict.fromkeys(constants, "constexpr"), constexprs=dict(constants)
    )
    options = {"num_warps": kernel.threads // 32, "ptx_version": PTX_VERSION, "enable_fp_fusion": True}
    compiled: Any = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    if compiled.metadata.shared != kernel.shared or compiled.metadata.global_scratch_size:
        raise InternalError(f"{kernel.name} needs {compiled.metadata.shared} bytes of shared memory; declare them")
    return compiled.asm["ptx"], compiled.asm["cubin"]


def main() -> None:
    """Writes every kernel's PTX beside the declarations."""
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # no path of the machine that compiles
    folder = Path(kernels.__file__).parent
    for kernel in kernels.KERNELS:
        ptx, _ = compile_kernel(kernel)
        (folder / kernel.image).write_text(f"// source {source_digest(kernel)}\n{ptx.strip()}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
