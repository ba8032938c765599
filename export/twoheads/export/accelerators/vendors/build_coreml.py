"""Core ML: a model package of each engine for Apple's devices. Only macOS runs it; what it declares is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools
import numpy as np
import onnx
import torch
from coremltools.optimize.coreml import OpPalettizerConfig, OptimizationConfig, palettize_weights
from onnx import numpy_helper
from palettes import palette
from torch_module import torch_module

PALETTES = {"palette8": 8, "palette4": 4}
"""Bits of an index."""

GROUP = 16
"""Columns of a weight that share their numbers."""

UNLIKE = 0.7
"""A weight is at most so far from what it became, as a share of its norm; another one is at 1.4."""


def identify() -> dict[str, str]:
    """The compiler's name and version."""
    return {"name": "coremltools", "version": coremltools.__version__}


def build(request: dict[str, Any]) -> None:
    """Converts, saves, and compares what the package declares with the engine's ports."""
    module, graph = torch_module(request["onnx"])
    with np.load(request["inputs"]) as given:
        inputs = tuple(torch.from_numpy(given[port.name]) for port in graph.input)
    program = torch.export.export(module, inputs).run_decompositions({})
    half = request["precision"] != "fp32"
    precision = coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32
    model = coremltools.convert(
        program,
        outputs=[coremltools.TensorType(name=port.name, dtype=np.float32) for port in graph.output],
        minimum_deployment_target=coremltools.target.iOS18,
        compute_units=coremltools.ComputeUnit.ALL,
        compute_precision=precision,
        skip_model_load=True,
    )
    if request["precision"] in PALETTES:
        model = _palettised(model, PALETTES[request["precision"]])
        _keep_weights(model, request)
    package = Path(request["folder"]) / f"{request['name']}.mlpackage"
    _with_names(model, [port.name for port in graph.input]).save(str(package))
    _check(package, graph)


def _palettised(model: Any, bits: int) -> Any:
    """The model, each weight an index into the few numbers of its group of columns, found by k-means."""

    def numbers(weights: Any) -> tuple[Any, Any]:
        return palette(weights, bits)

    how = OpPalettizerConfig(mode="custom", lut_function=numbers, granularity="per_grouped_channel", group_size=GROUP)
    return palettize_weights(model, OptimizationConfig(global_config=how))


def _keep_weights(model: Any, request: dict[str, Any]) -> None:
    """Writes the engine with the weights that the package has, which tells here what they cost."""
    engine = onnx.load(request["onnx"])
    tensors = [tensor for tensor in engine.graph.initializer if len(tensor.dims) == 2]
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
    for operation in model._mil_program.functions["main"].operations:
        if operation.op_type != "constexpr_lut_to_dense":
            continue
        found = np.asarray(operation.materialized_val_inference(), np.float32)
        near = (
            (float(np.linalg.norm(one - array)) / float(np.linalg.norm(array)), name, not side)
            for name, array in arrays.items()
            for side, one in enumerate((found, found.T))
            if one.shape == array.shape
        )
        off, name, same = min(near, default=(np.inf, "", True))
        if off > UNLIKE:
            raise ValueError(f"{operation.name} is near none of the engine's weights")
        tensor = next(tensor for tensor in tensors if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(found if same else found.T), name))
    path = Path(request["folder"]) / f"{request['name']}.onnx"
    path.write_bytes(engine.SerializeToString(deterministic=True))


def _with_names(model: Any, names: list[str]) -> Any:
    """The model, its inputs called ``names``; the converter numbers those of a torch program."""
    spec = model.get_spec()
    for feature, name in zip(list(spec.description.input), names, strict=True):
        coremltools.utils.rename_feature(spec, feature.name, name, rename_inputs=True, rename_outputs=False)
    return coremltools.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)


def _check(package: Path, graph: onnx.GraphProto) -> None:
    """Compares names and shapes in the saved package with the engine's.

    Raises:
        ValueError: They differ.
    """
    spec = coremltools.utils.load_spec(str(package))
    for found, ports in ((spec.description.input, graph.input), (spec.description.output, graph.output)):
        declared = {feature.name: tuple(feature.type.multiArrayType.shape) for feature in found}
        shapes = {port.name: tuple(dim.dim_value for dim in port.type.tensor_type.shape.dim) for port in ports}
        if declared != shapes:
            raise ValueError(f"the package declares {declared} instead of {shapes}")


def off_accelerator(_log: str) -> list[str]:
    """Nothing: which unit computes what is decided on the device."""
    return []
