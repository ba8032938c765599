"""The engines of the ``stock`` lowering as ONNX: ``Softmax(scale * q k^T) v`` and no other arithmetic.

No reduction outside of the Softmax, no log-sum-exp, and no mask input where the mask could be cut into rectangles and
triangles; the lower triangle of the ``causal`` variant is a constant. Heads of a group are folded into rows, so that
keys are not repeated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from twoheads.export.emit.graph_builder import GraphBuilder
from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import StockEngine

__all__ = ["stock_model"]

_DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def stock_model(engine: StockEngine, variant: str) -> onnx.ModelProto:
    """The ONNX model of one variant of ``engine``, with the ports that ``engine.ports(variant)`` declares.

    Raises:
        InternalError: There is no such variant.
    """
    if variant not in StockEngine.VARIANTS:
        raise InternalError(f"engine {engine.name}: no variant {variant!r}")
    inputs, outputs = engine.ports(variant)
    nodes, constants = _graph(engine, variant)
    graph = GraphBuilder()
    graph.nodes = nodes
    graph.constants = {name: numpy_helper.from_array(array, name) for name, array in constants.items()}
    return graph.model(f"{engine.name}.{variant}", inputs, outputs)


def _graph(engine: StockEngine, variant: str) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray[Any, Any]]]:
    groups, keys = engine.kv_num_heads, engine.keys(variant)
    group, block = engine.q_num_heads // groups, engine.block_size
    dtype = np.dtype(engine.dtype)
    constants: dict[str, np.ndarray[Any, Any]] = {
        "scale": np.array(engine.scale, dtype),
        "query_rows": np.array([groups, group * block, engine.query_dim], np.int64),
        "key_rows": np.array([groups, keys, engine.query_dim], np.int64),
        "value_rows": np.array([groups, keys, engine.v_head_dim + 2], np.int64),
        "out_rows": np.array([1, engine.q_num_heads, block, engine.v_head_dim + 2], np.int64),
    }
    nodes = [
        _node("Reshape", "q", "query_rows", to="rows"),
        _node("Reshape", "k", "key_rows", to="keys"),
        _node("Reshape", "v", "value_rows", to="values"),
        _node("Mul", "rows", "scale", to="scaled"),
        _node("Transpose", "keys", to="columns", perm=[0, 2, 1]),
        _node("MatMul", "scaled", "columns", to="products"),
    ]
    scores = "products"
    if variant != "full":
        nodes += _masked(engine, variant, constants)
        scores = "scores"
    nodes += [
        _node("Softmax", scores, to="shares", axis=-1),
        _node("MatMul", "shares", "values", to="weighted"),
        _node("Reshape", "weighted", "out_rows", to="out"),
    ]
    return nodes, constants


def _masked(engine: StockEngine, variant: str, constants: dict[str, np.ndarray[Any, Any]]) -> list[onnx.NodeProto]:
    """Adds the triangle, or the mask input, to ``products``, giving ``scores``."""
    groups, keys, block = engine.kv_num_heads, engine.keys(variant), engine.block_size
    group = engine.q_num_heads // groups
    constants["by_head"] = np.array([groups, group, block, keys], np.int64)
    constants["by_row"] = np.array([groups, group * block, keys], np.int64)
    nodes: list[onnx.NodeProto] = []
    if variant == "causal":
        hidden = np.triu(np.ones((block, keys), np.bool_), 2)  # the synthetic key is column 0
        constants["mask"] = np.where(hidden, -np.inf, 0).astype(engine.dtype)[None, None]
        mask = "mask"
    else:
        mask = "head_mask"
        heads = [1, 1] if engine.mask_heads == 1 else [groups, group]
        constants["mask_rows"] = np.array([*heads, block, keys], np.int64)
        nodes.append(_node("Reshape", "mask", "mask_rows", to="float_mask" if engine.dtype != "float32" else mask))
        if engine.dtype != "float32":
            nodes.append(_node("Cast", "float_mask", to=mask, cast=_DTYPES[engine.dtype]))
    return [
        *nodes,
        _node("Reshape", "products", "by_head", to="head_products"),
        _node("Add", "head_products", mask, to="head_scores"),
        _node("Reshape", "head_scores", "by_row", to="scores"),
    ]


def _node(operator: str, *inputs: str, to: str, **attributes: Any) -> onnx.NodeProto:
    if "cast" in attributes:
        attributes = {"to": attributes["cast"]}
    return helper.make_node(operator, list(inputs), [to], name=to, **attributes)
