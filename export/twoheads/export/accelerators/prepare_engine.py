"""An engine in the form in which a target's compiler gets it, and the part that the host keeps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx

from twoheads.export.accelerators.compress_weights import compress_weights
from twoheads.export.accelerators.precisions import PRECISIONS
from twoheads.export.accelerators.rewrites.bound_exponents import bound_exponents
from twoheads.export.accelerators.rewrites.cast import cast_model
from twoheads.export.accelerators.rewrites.hidden_scores import raise_hidden_scores
from twoheads.export.accelerators.rewrites.host_part import Parts, split_host_part
from twoheads.export.accelerators.rewrites.opset import prepare_model
from twoheads.export.accelerators.rewrites.quantise_products import quantise_products
from twoheads.export.accelerators.rewrites.round_weighted import round_weighted
from twoheads.export.accelerators.rewrites.scale_squares import scale_squares
from twoheads.export.accelerators.rewrites.smooth_channels import smooth_channels
from twoheads.export.accelerators.rewrites.split_synthetic import SUMS, split_synthetic
from twoheads.export.accelerators.target import Target
from twoheads.export.precision.half_constants import bring_into_half_range

__all__ = ["prepare_engine", "round_engine"]


def prepare_engine(
    model: onnx.ModelProto,
    target: Target,
    precision: str,
    name: str,
    stock: tuple[int, int] | None = None,
    scores: Collection[str] = (),
) -> Parts:
    """What the host computes, as it is, and what the compiler builds, prepared; together they are ``model``.

    Args:
        model: An engine, with its weights or references to them.
        target: For which compiler.
        precision: In what it will compute.
        name: What errors call the engine.
        stock: As an ``EngineJob`` has it.
        scores: Likewise.

    Raises:
        CompileError: A constant is beyond the precision's range.
        RuntimeError: The ``onnx`` package can't express an operator in the target's operator set.
    """
    about = PRECISIONS[precision]
    parts = split_host_part(model) if about.narrow or precision == "bf16" else Parts(None, model)
    accelerator = parts.accelerator
    if accelerator is None:
        return parts
    if about.half:
        accelerator = scale_squares(bring_into_half_range(accelerator, name))
        if target.exponent_bound is not None:
            accelerator = bound_exponents(accelerator, target.exponent_bound)
    elif about.whole:
        if target.hidden_score is not None:
            accelerator = raise_hidden_scores(accelerator, target.hidden_score)
        if stock is not None:
            accelerator = split_synthetic(accelerator, *stock)
    prepared = prepare_model(accelerator, target.highest_opset, target.widest_product)
    if target.weights_in_model and about.small_weights is not None:
        prepared = compress_weights(prepared, about.small_weights, scores)
    typed = target.typed and precision in ("fp16", "bf16")
    return Parts(parts.host, cast_model(prepared, precision) if typed else prepared)


def round_engine(
    accelerator: onnx.ModelProto, target: Target, precision: str, samples: Sequence[Mapping[str, npt.NDArray[Any]]]
) -> onnx.ModelProto:
    """What a compiler gets whose whole numbers are written into the model; any other's engine as it is.

    Args:
        accelerator: As :func:`prepare_engine` gives it.
        target: For which compiler.
        precision: In what it will compute.
        samples: Its inputs in several calls.
    """
    about = PRECISIONS[precision]
    if about.rounded_weights is not None:
        return round_weighted(accelerator, about.rounded_weights, samples)
    if about.whole and target.typed:
        return quantise_products(smooth_channels(accelerator, samples), kept=(SUMS,))
    return accelerator
