"""Files that take a fixed number of inputs at once, read as files for one input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx

from twoheads.compiler.frontend.onnx.choose_outputs import model_outputs
from twoheads.compiler.frontend.onnx.lifts.lift_batch import lift_batch
from twoheads.compiler.frontend.onnx.model.read_file import Array, GraphInput, OnnxFile
from twoheads.compiler.frontend.onnx.passes.fold import graph_of
from twoheads.graphs.errors import CompileError

__all__ = ["one_input"]

TOKENS = 12
"""Of an experiment, where the file does not say how many."""

LARGEST_BATCH = 64


def one_input(file: OnnxFile, kinds: Mapping[str, str]) -> OnnxFile:
    """The file for one input at a time; the same file if it is for one or for any number.

    Args:
        file: As it was read.
        kinds: What each of its inputs is (see :mod:`~twoheads.compiler.frontend.onnx.bind_inputs`), by name.

    Raises:
        CompileError: Its batch can't be one input.
    """
    fixed = [value for value in file.inputs if len(value.shape) > 1 and _number(value) > 1]
    if not fixed:
        return file
    batch = _number(fixed[0])
    if batch > LARGEST_BATCH or any(_number(value) not in (1, batch) for value in file.inputs if len(value.shape) > 1):
        sizes = ", ".join(f"{value.name} {list(value.shape)}" for value in fixed)
        raise CompileError(f"input {fixed[0].name}", f"has a fixed batch of {batch} ({sizes})", "export with batch 1")
    outputs = list(model_outputs(file, ()))
    graph = graph_of(file.opsets, [_copy(node) for node in file.nodes], file.weights, outputs)
    feeds = {value.name: _example(value, kinds[value.name], seed) for seed, value in enumerate(file.inputs)}
    lifted = lift_batch(graph, feeds, batch, outputs)
    inputs = tuple(
        replace(value, shape=(1, *value.shape[1:])) if len(value.shape) > 1 else value for value in file.inputs
    )
    return replace(file, nodes=tuple(node.proto for node in lifted.nodes), weights=lifted.weights, inputs=inputs)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _number(value: GraphInput) -> int:
    """The first dimension where it is a number; 1 where any batch may come."""
    first = value.shape[0]
    return first if isinstance(first, int) and first > 0 else 1


def _example(value: GraphInput, kind: str, seed: int) -> Array:
    """Another example in every row; positions that count, masks of ones, pasts of no tokens."""
    free = 0 if kind == "past" else TOKENS
    shape = [dim if isinstance(dim, int) and dim > 0 else free for dim in value.shape]
    if len(shape) > 1 and not (isinstance(value.shape[0], int) and value.shape[0]):
        shape[0] = 1
    dtype, draw = np.dtype(value.dtype), np.random.default_rng(seed)
    if kind == "positions":
        return np.broadcast_to(np.arange(shape[-1]), shape).astype(dtype)
    if kind in ("ones", "zeros"):
        return np.full(shape, int(kind == "ones"), dtype)
    return (draw.standard_normal(shape) if dtype.kind == "f" else draw.integers(0, 2, shape)).astype(dtype)
