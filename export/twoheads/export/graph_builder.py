"""An ONNX graph under construction: nodes with names of their own, and constants that are stored once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

__all__ = ["GraphBuilder"]


class GraphBuilder:
    """Nodes and constants of a graph under construction; every method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Appends a node; without ``output`` its result is named after the operator and the node's number."""
        name = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: float | list[int]) -> str:
        """A float32 scalar or an int64 vector; equal ones are stored once."""
        vector = isinstance(value, list)
        name = f"dims_{'_'.join(map(str, value))}" if isinstance(value, list) else f"number_{value!r}"
        if name not in self.constants:
            array = np.array(value, np.int64 if vector else np.float32)
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def array(self, name: str, array: npt.NDArray[Any]) -> str:
        """A constant array under a name of its own."""
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def reshape(self, value: str, *shape: int, output: str = "") -> str:
        """Another view of ``value``; free inside of the graph, a copy where it is the graph's output."""
        return self.node("Reshape", value, self.constant(list(shape)), output=output)

    def row_max(self, value: str) -> str:
        """The maximum over the last axis, without that axis."""
        return self.node("ReduceMax", value, self.constant([-1]), keepdims=0)
