"""An engine in the form in which a target's compiler gets it, and the part that the host keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx

from twoheads.export.accelerators.rewrites.bound_exponents import bound_exponents
from twoheads.export.accelerators.rewrites.cast import cast_model
from twoheads.export.accelerators.rewrites.compress_weights import WEIGHT_BITS, compress_weights
from twoheads.export.accelerators.rewrites.hidden_scores import raise_hidden_scores
from twoheads.export.accelerators.rewrites.host_part import Parts, split_host_part
from twoheads.export.accelerators.rewrites.opset import prepare_model
from twoheads.export.accelerators.rewrites.quantise_products import quantise_products
from twoheads.export.accelerators.rewrites.smooth_channels import smooth_channels
from twoheads.export.accelerators.rewrites.split_synthetic import SUMS, split_synthetic
from twoheads.export.accelerators.target import Target
from twoheads.export.precision.half_range import bring_into_half_range

__all__ = ["is_half", "is_narrow", "prepare_engine", "round_engine"]


def is_half(precision: str) -> bool:
    """Whether values have float16's range; bf16 has float32's, with fewer digits."""
    return precision == "fp16"


def is_narrow(precision: str) -> bool:
    """Whether values have a smaller range than float32's."""
    return is_half(precision) or precision == "int8"


def prepare_engine(
    model: onnx.ModelProto, target: Target, precision: str, name: str, stock: tuple[int, int] | None = None
) -> Parts:
    """What the host computes, as it is, and what the compiler builds, prepared; together they are ``model``.

    Args:
        model: An engine, with its weights or references to them.
        target: For which compiler.
        precision: In what it will compute.
        name: What errors call the engine.
        stock: As an ``EngineJob`` has it.

    Raises:
        CompileError: A constant is beyond the precision's range.
        RuntimeError: The ``onnx`` package can't express an operator in the target's operator set.
    """
    wide = precision == "fp32" or precision in WEIGHT_BITS
    parts = Parts(None, model) if wide else split_host_part(model)
    accelerator = parts.accelerator
    if accelerator is None:
        return parts
    if is_half(precision):
        accelerator = bring_into_half_range(accelerator, name)
        if target.exponent_bound is not None:
            accelerator = bound_exponents(accelerator, target.exponent_bound)
    elif precision == "int8":
        if target.hidden_score is not None:
            accelerator = raise_hidden_scores(accelerator, target.hidden_score)
        if stock is not None:
            accelerator = split_synthetic(accelerator, *stock)
    prepared = prepare_model(accelerator, target.highest_opset, target.widest_product)
    if target.weights_in_model and precision in WEIGHT_BITS:
        prepared = compress_weights(prepared, precision)
    typed = target.typed and precision in ("fp16", "bf16")
    return Parts(parts.host, cast_model(prepared, precision) if typed else prepared)


def round_engine(accelerator: onnx.ModelProto, samples: Sequence[Mapping[str, npt.NDArray[Any]]]) -> onnx.ModelProto:
    """What a compiler of typed models gets in int8: its products rounded in the model itself.

    Args:
        accelerator: As :func:`prepare_engine` gives it.
        samples: Its inputs in several calls.
    """
    return quantise_products(smooth_channels(accelerator, samples), kept=(SUMS,))
