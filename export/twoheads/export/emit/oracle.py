"""The oracle as ONNX: a plain transformer of fixed length whose parameters are inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from twoheads.export.emit.graph_builder import GraphBuilder
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import OracleEngine

__all__ = ["oracle_model"]


def oracle_model(engine: OracleEngine, variant: str) -> onnx.ModelProto:
    """The ONNX model of ``engine``; it depends on the sizes of oracle and heads alone, not on the model it serves.

    Raises:
        InternalError: There is no such variant, or the dtype is not float32.
    """
    if variant not in OracleEngine.VARIANTS or engine.dtype != "float32":
        raise InternalError(f"engine {engine.name}: no oracle {variant!r} in {engine.dtype}")
    inputs, outputs = engine.ports(variant)
    constants: dict[str, np.ndarray[Any, Any]] = {
        "merged": np.array([1, 1 + engine.block_size, engine.heads * engine.value_dim], np.int64)
    }
    if variant == "causal":
        positions = 1 + engine.block_size
        constants["triangle"] = np.where(np.tri(positions, dtype=np.bool_), 0, -np.inf).astype(np.float32)[None]
    nodes: list[onnx.NodeProto] = []
    x = "x"
    for layer in range(engine.layers):
        last = layer == engine.layers - 1
        nodes += _layer(layer, x, "y" if last else f"x.{layer + 1}", causal=variant == "causal")
        x = f"x.{layer + 1}"
    graph = GraphBuilder()
    graph.nodes = nodes
    graph.constants = {name: numpy_helper.from_array(array, name) for name, array in constants.items()}
    return graph.model(f"oracle.{variant}", inputs, outputs)


def _layer(at: int, x: str, y: str, *, causal: bool) -> list[onnx.NodeProto]:
    """One layer: attention and MLP, each with a residual. ``[heads, position, ...]`` inside of the attention."""

    def node(operator: str, *inputs: str, to: str, **attributes: Any) -> onnx.NodeProto:
        name = y if to == y else f"{to}.{at}"
        return helper.make_node(operator, list(inputs), [name], name=name, **attributes)

    scores = [node("Add", f"products.{at}", "triangle", to="scores")] if causal else []
    return [
        node("MatMul", x, f"w_q.{at}", to="q"),
        node("MatMul", x, f"w_k.{at}", to="k"),
        node("MatMul", x, f"w_v.{at}", to="v"),
        node("Transpose", f"k.{at}", to="columns", perm=[0, 2, 1]),
        node("MatMul", f"q.{at}", f"columns.{at}", to="products"),
        *scores,
        node("Softmax", f"scores.{at}" if causal else f"products.{at}", to="shares", axis=-1),
        node("MatMul", f"shares.{at}", f"v.{at}", to="heads"),
        node("Transpose", f"heads.{at}", to="rows", perm=[1, 0, 2]),
        node("Reshape", f"rows.{at}", "merged", to="row"),
        node("MatMul", f"row.{at}", f"w_o.{at}", to="attention"),
        node("Add", x, f"attention.{at}", to="middle"),
        node("MatMul", f"middle.{at}", f"w_1.{at}", to="product"),
        node("Add", f"product.{at}", f"b_1.{at}", to="sum"),
        node("Relu", f"sum.{at}", to="hidden"),
        node("MatMul", f"hidden.{at}", f"w_2.{at}", to="back"),
        node("Add", f"back.{at}", f"b_2.{at}", to="change"),
        node("Add", f"middle.{at}", f"change.{at}", to=y),
    ]
