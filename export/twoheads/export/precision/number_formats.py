"""What ``compile --dtype`` may say, and with what else."""

from __future__ import annotations

from twoheads.graphs.errors import CompileError
from twoheads.graphs.serialization.bundle_format import LOSSLESS

__all__ = ["check_dtype", "check_products"]

NARROW_LOWERINGS = ("auto", "tile", "whole")


def check_dtype(dtype: str, *, lowering: str, weight_dtype: str) -> None:
    """Raises unless a bundle can have these together.

    Args:
        dtype: NumPy's name of the format of values and weights.
        lowering: As ``compile_model`` takes it.
        weight_dtype: Of the products' weights: ``dtype``, ``same``, ``lossless``, or ``int8`` or ``int4``.

    Raises:
        CompileError: With a remedy.
    """
    where = f"--dtype {dtype}"
    if dtype == "bfloat16":
        problem = (
            "has no bundle: ONNX Runtime multiplies no bfloat16 on the CPU (no kernel for Gemm), NumPy stores none"
        )
        fix = "run a float32 bundle with --backend openvino --precision bf16, or use twoheads build --precision bf16"
        raise CompileError(where, problem, fix)
    if dtype == "float32":
        return
    if dtype != "float16":
        raise CompileError(where, "is no format of values", "choose float32 or float16")
    if lowering not in NARROW_LOWERINGS:
        problem = f"has no engines for the lowering {lowering!r}"
        raise CompileError(where, problem, "choose --lowering tile, or leave out --dtype")
    if weight_dtype not in (dtype, "same"):
        problem = f"goes with weights of float16, and {weight_dtype} is asked for"
        raise CompileError(where, problem, "leave out one of --dtype and --weights")


def check_products(products: str, *, weight_dtype: str) -> None:
    """Raises unless a bundle can have these together.

    Args:
        products: In what products of quantised weights are computed.
        weight_dtype: As in :func:`check_dtype`.

    Raises:
        CompileError: With a remedy.
    """
    if products == "float32" or weight_dtype in ("int4", "int8"):
        return
    problem = "says how quantised weights are multiplied, and there are none"
    if weight_dtype == LOSSLESS:
        problem = "rounds what weights are multiplied by, and --weights lossless rounds nothing"
    raise CompileError(f"--products {products}", problem, "add --weights int8 or --weights int4")
