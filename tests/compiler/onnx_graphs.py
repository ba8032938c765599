"""Small hand-made ONNX graphs and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["attention_nodes", "attention_weights", "save_model"]

WIDTH = 8


def attention_nodes(source: str, result: str) -> list[onnx.NodeProto]:
    """One head of attention with a residual, ``[1, n, 8]`` to the same, reading weights ``wq``, ``wk``, ``wv``."""
    return [
        helper.make_node("MatMul", [source, "wq"], ["q"]),
        helper.make_node("MatMul", [source, "wk"], ["k"]),
        helper.make_node("MatMul", [source, "wv"], ["v"]),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=-1),
        helper.make_node("MatMul", ["probabilities", "v"], ["attended"]),
        helper.make_node("Add", [source, "attended"], [result]),
    ]


def attention_weights(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """The weights of :func:`attention_nodes`."""
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal((WIDTH, WIDTH)).astype(np.float32) for name in ("wq", "wk", "wv")}


def save_model(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, np.ndarray[Any, Any]],
    outputs: Mapping[str, Sequence[int | str | None]],
    *,
    inputs: Mapping[str, tuple[int, Sequence[int | str | None]]] | None = None,
    opset: int = 17,
    external: bool = False,
) -> Path:
    """Saves a file; by default its input is ``x``, float32 ``[batch, tokens, 8]``."""
    declared = inputs or {"x": (TensorProto.FLOAT, ["batch", "tokens", WIDTH])}
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info(name, *kind) for name, kind in declared.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.save_model(model, str(path), save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return path
