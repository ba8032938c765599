"""Exact rewrites of an engine into what a compiler reads: an older operator set, constants where it looks for them."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter

from twoheads.export.accelerators.rewrites.node_rewrites import divide_by_reciprocals, split_wide_products

__all__ = ["prepare_model"]

COMMUTATIVE = frozenset({"Add", "Mul"})
GELU_SINCE = 20
AXES_INPUT_SINCE = 18
"""Since this version reductions read their axes as an input, and say by an attribute what none of them means."""


def prepare_model(
    model: onnx.ModelProto, highest_opset: int | None = None, widest_product: int | None = None
) -> onnx.ModelProto:
    """The same arithmetic, its operators of version ``highest_opset`` at most (``None``: as they are).

    Products have ``widest_product`` columns at most (``None``: as they are): wider ones are computed in parts. A factor
    that is a reciprocal becomes a division, which RKNN 2.5.0 keeps on its NPU. A constant becomes the second operand of
    a sum or a product: patterns such as RMSNorm are recognised by that, and QNN 2.7.0 fails on one that has its weight
    first.

    Raises:
        RuntimeError: The ``onnx`` package can't express an operator in that version.
    """
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    constants = {tensor.name for tensor in prepared.graph.initializer}
    for node in prepared.graph.node:
        if node.op_type in COMMUTATIVE and node.input[0] in constants and node.input[1] not in constants:
            node.input[:] = [node.input[1], node.input[0]]
    divide_by_reciprocals(prepared.graph)
    if widest_product is not None:
        split_wide_products(prepared.graph, widest_product)
    if highest_opset is None or opset(prepared) <= highest_opset:
        return prepared
    if highest_opset < GELU_SINCE:
        _expand_gelu(prepared.graph)
    converted = version_converter.convert_version(prepared, highest_opset)
    if highest_opset < AXES_INPUT_SINCE:
        _drop_noop_attribute(converted.graph)
    return converted


def opset(model: onnx.ModelProto) -> int:
    """The version of the standard operators that the model uses."""
    return next(int(entry.version) for entry in model.opset_import if not entry.domain)


def _drop_noop_attribute(graph: onnx.GraphProto) -> None:
    """The converter turns a reduction's axes into an attribute, and leaves one that older versions don't know."""
    for node in graph.node:
        kept = [a for a in node.attribute if not (a.name == "noop_with_empty_axes" and node.op_type != "ReduceSum")]
        if len(kept) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(kept)


def _expand_gelu(graph: onnx.GraphProto) -> None:
    """Writes ``Gelu`` out as exporters did before it was an operator, which is what compilers look for."""
    nodes: list[onnx.NodeProto] = []
    used: set[str] = set()
    for node in graph.node:
        approximation = next((a.s for a in node.attribute if a.name == "approximate"), b"none")
        if node.op_type != "Gelu" or approximation not in _GELUS:
            nodes.append(node)
            continue
        added = _GELUS[approximation](node.input[0], node.output[0])
        nodes += added
        used.update(name for other in added for name in other.input if name in _GELU_NUMBERS)
    if not used:
        return
    for name in sorted(used):
        graph.initializer.append(numpy_helper.from_array(np.array(_GELU_NUMBERS[name], np.float32), name))
    del graph.node[:]
    graph.node.extend(nodes)


def _steps(result: str, *steps: tuple[str, list[str], str]) -> list[onnx.NodeProto]:
    """Nodes in a row; operands and results that begin with a dot are named after ``result``."""

    def named(name: str) -> str:
        return f"{result}_{name[1:]}" if name.startswith(".") else name

    return [
        helper.make_node(operator, list(map(named, inputs)), [named(output)], name=named(output))
        for operator, inputs, output in steps
    ]


def _exact_gelu(given: str, result: str) -> list[onnx.NodeProto]:
    return _steps(
        result,
        ("Div", [given, "gelu.root"], ".root"),
        ("Erf", [".root"], ".erf"),
        ("Add", [".erf", "gelu.one"], ".one"),
        ("Mul", [given, ".one"], ".product"),
        ("Mul", [".product", "gelu.half"], result),
    )


def _tanh_gelu(given: str, result: str) -> list[onnx.NodeProto]:
    return _steps(
        result,
        ("Mul", [given, given], ".square"),
        ("Mul", [".square", given], ".cube"),
        ("Mul", [".cube", "gelu.cubic"], ".bent"),
        ("Add", [given, ".bent"], ".inner"),
        ("Mul", [".inner", "gelu.slope"], ".scaled"),
        ("Tanh", [".scaled"], ".tanh"),
        ("Add", [".tanh", "gelu.one"], ".one"),
        ("Mul", [given, ".one"], ".product"),
        ("Mul", [".product", "gelu.half"], result),
    )


_GELUS = {b"none": _exact_gelu, b"tanh": _tanh_gelu}
_GELU_NUMBERS = {
    "gelu.root": math.sqrt(2),
    "gelu.one": 1.0,
    "gelu.half": 0.5,
    "gelu.cubic": 0.044715,
    "gelu.slope": math.sqrt(2 / math.pi),
}
