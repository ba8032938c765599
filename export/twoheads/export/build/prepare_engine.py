"""An engine in the form in which a target's compiler gets it, and the part that the host keeps."""

from __future__ import annotations

import onnx

from twoheads.export.build.half_range import bring_into_half_range
from twoheads.export.build.host_part import Parts, split_host_part
from twoheads.export.build.prepare_model import prepare_model
from twoheads.export.build.target import Target

__all__ = ["is_half", "prepare_engine"]


def is_half(precision: str) -> bool:
    """Whether values have float16's range; bf16 has float32's, with fewer digits."""
    return precision == "fp16"


def prepare_engine(model: onnx.ModelProto, target: Target, precision: str, name: str) -> Parts:
    """What the host computes, as it is, and what the compiler builds, prepared; together they are ``model``.

    Args:
        model: An engine, with its weights or references to them.
        target: For which compiler.
        precision: In what it will compute.
        name: What errors call the engine.

    Raises:
        CompileError: A constant is beyond the precision's range.
        RuntimeError: The ``onnx`` package can't express an operator in the target's operator set.
    """
    parts = split_host_part(model) if precision != "fp32" else Parts(None, model)
    if parts.accelerator is None:
        return parts
    ranged = bring_into_half_range(parts.accelerator, name) if is_half(precision) else parts.accelerator
    return Parts(parts.host, prepare_model(ranged, target.highest_opset))
