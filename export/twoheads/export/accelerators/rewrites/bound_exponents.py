"""Keeps exponents where a compiler's ``Exp`` is right: half precision knows only 0 and infinity far sooner."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["bound_exponents"]

HIGHEST = {"Exp": True, "Softplus": False}
"""Operators that raise to a power, and whether large numbers are bounded, too: those that ``Softplus`` gives back."""


def bound_exponents(model: onnx.ModelProto, bound: float) -> onnx.ModelProto:
    """The model with what its exponentials take clipped to ``bound`` on either side.

    In float16 that changes nothing if ``bound`` is 18 or more: ``exp`` is 0 below -17.4 and infinite above 11.1.

    Args:
        model: An engine.
        bound: The largest magnitude that they take.
    """
    bounded = onnx.ModelProto()
    bounded.CopyFrom(model)
    graph = bounded.graph
    found = [node for node in graph.node if node.op_type in HIGHEST]
    if not found:
        return model
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type in HIGHEST:
            ends = ["exponent_lowest", "exponent_highest"][: 1 + HIGHEST[node.op_type]]
            clipped = f"{node.output[0]}.bounded"
            nodes.append(helper.make_node("Clip", [node.input[0], *ends], [clipped], name=clipped))
            node.input[0] = clipped
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    for name, value in (("exponent_lowest", -bound), ("exponent_highest", bound)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    return bounded
