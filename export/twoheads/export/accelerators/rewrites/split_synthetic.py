"""Splits a stock engine's synthetic coordinates off its products: an exact rewrite, for precisions of 8 bits.

A synthetic score is as large as a log-sum-exp divided by the scale, ten times a query's numbers, and 1 among a value's
columns need not be what these are like: in one array with them they take the levels. Split off,
``q k = q' k' + q_s k_s + codes``, a sum of three of the score's own size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["SUMS", "split_synthetic"]

SUMS = "synthetic_sums"
"""The product that adds up shares, of two columns of 0 and 1: no work, and what all outputs are divided by."""

END = np.iinfo(np.int64).max


def split_synthetic(model: onnx.ModelProto, head_dim: int, v_head_dim: int) -> onnx.ModelProto:
    """The same arithmetic, for an engine of :func:`~twoheads.export.emit.stock_attention.stock_model`.

    Args:
        model: The engine.
        head_dim: Columns of a query that are the model's; the next is the synthetic score, all others are codes.
        v_head_dim: Columns of a value that are the model's; two follow.
    """
    split = onnx.ModelProto()
    split.CopyFrom(model)
    graph = split.graph
    width = next(int(port.type.tensor_type.shape.dim[-1].dim_value) for port in graph.input if port.name == "q")
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.output[0] == "columns":
            continue
        if node.output[0] == "products":
            nodes += _scores(graph, head_dim, width)
        elif node.output[0] == "weighted":
            nodes += _outputs(graph, v_head_dim)
        else:
            nodes.append(node)
    graph.ClearField("node")
    graph.node.extend(nodes)
    return split


def _scores(graph: onnx.GraphProto, head_dim: int, width: int) -> list[onnx.NodeProto]:
    """``products`` from ``scaled [groups, rows, width]`` and ``keys [groups, keys, width]``."""
    cuts = {"real": (0, head_dim), "synthetic": (head_dim, head_dim + 1)}
    if width > head_dim + 1:
        cuts["codes"] = (head_dim + 1, width)
    nodes: list[onnx.NodeProto] = []
    terms: list[str] = []
    for part, (start, stop) in cuts.items():
        nodes += [
            _slice(graph, "scaled", start, stop, to=f"{part}_rows"),
            _slice(graph, "keys", start, stop, to=f"{part}_keys"),
            _node("Transpose", f"{part}_keys", to=f"{part}_columns", perm=[0, 2, 1]),
            _node("Mul" if part == "synthetic" else "MatMul", f"{part}_rows", f"{part}_columns", to=f"{part}_products"),
        ]
        terms.append(f"{part}_products")
    for at, term in enumerate(terms[1:], start=1):
        left = terms[0] if at == 1 else f"sum_{at - 1}"
        nodes.append(_node("Add", left, term, to="products" if at == len(terms) - 1 else f"sum_{at}"))
    return nodes


def _outputs(graph: onnx.GraphProto, v_head_dim: int) -> list[onnx.NodeProto]:
    """``weighted`` from ``shares [groups, rows, keys]`` and ``values [groups, keys, v_head_dim + 2]``."""
    return [
        _slice(graph, "values", 0, v_head_dim, to="real_values"),
        _slice(graph, "values", v_head_dim, END, to="synthetic_values"),
        _node("MatMul", "shares", "real_values", to="real_weighted"),
        _node("MatMul", "shares", "synthetic_values", to=SUMS),
        _node("Concat", "real_weighted", SUMS, to="weighted", axis=-1),
    ]


def _slice(graph: onnx.GraphProto, value: str, start: int, stop: int, *, to: str) -> onnx.NodeProto:
    bounds = {"start": start, "stop": stop, "axis": -1}
    names = [f"{to}_{bound}" for bound in bounds]
    for name, number in zip(names, bounds.values(), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.array([number], np.int64), name))
    return _node("Slice", value, *names, to=to)


def _node(operator: str, *inputs: str, to: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), [to], name=to, **attributes)
